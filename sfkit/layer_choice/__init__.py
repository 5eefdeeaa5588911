"""Which depth to align: how like the teacher each is, how well depth can be read from it, and how certain that is."""

from __future__ import annotations

from sfkit.layer_choice.chart import chart
from sfkit.layer_choice.cka import linear_cka
from sfkit.layer_choice.ranking import DepthRank, Measure, Ranking, rank_depths
from sfkit.layer_choice.spread import end_anchored, uniform

__all__ = ["DepthRank", "Measure", "Ranking", "chart", "end_anchored", "linear_cka", "rank_depths", "uniform"]
