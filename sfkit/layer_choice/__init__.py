"""Which student layer to align: likeness to the teacher, what a depth probe reads, and how certain that is."""

from __future__ import annotations

from sfkit.layer_choice.chart import chart
from sfkit.layer_choice.cka import linear_cka
from sfkit.layer_choice.ranking import LayerRank, Measure, Ranking, rank_layers
from sfkit.layer_choice.spread import end_anchored, uniform

__all__ = ["LayerRank", "Measure", "Ranking", "chart", "end_anchored", "linear_cka", "rank_layers", "uniform"]
