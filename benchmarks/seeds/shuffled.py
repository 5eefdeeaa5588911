"""The control: right geometry, wrong image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sfkit.teachers.geometry import GeometryTeacher
from sfkit.views.types import FeatureMap, Views


class ShuffledGeometry(GeometryTeacher):
    """The geometry teacher with its targets dealt out to other samples of the batch; none keeps its own.

    The targets have the same distribution, the same share of them is fixed by the position in the grid, and the loss
    costs as much: what this arm does not reach is owed to the geometry of the very frame.
    """

    name = "shuffled-geometry"

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        maps = super().encode(model, views, layers, grid)
        order = _derangement(len(views.images))
        return [FeatureMap(found.values[order], found.mask[order]) for found in maps]


def _derangement(n: int) -> torch.Tensor:
    """A permutation of ``n`` that leaves nothing in place, in one random cycle."""
    cycle = torch.randperm(n)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order
