"""Resampling as a step of its own, to say when and how it is done."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ShapeError
from sfkit.registry.component import Harmless
from sfkit.transforms.base import Transform
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap


class ResampleOptions(Options):
    """Options of :class:`ResampleTransform`."""

    align_corners: Harmless[bool] = Field(
        default=False,
        description="Put the corner patches' centers on each other, without antialiasing, as the released Spatial "
        "Forcing code does: up to 0.28 of a student patch of shift at the borders.",
    )
    scale_factor: Harmless[bool] = Field(
        default=False,
        description="Work the size out from one ratio and cut off what is behind the point, as the released Spatial "
        "Forcing code does: some grids come out one too small, and are refused.",
    )


class ResampleTransform(Transform):
    """To the student's grid, bilinear, leaving masked tokens out: ``(b, v, *, *, d)`` to ``(b, v, gh, gw, d)``.

    See :func:`sfkit.views.resample.resample`. With ``align_corners`` and a mask, a target is valid if valid tokens
    carry at least half of its weight, as there.

    With ``scale_factor`` the size is ``int(side * r)``, ``r = 1 / sqrt(teacher tokens / student tokens)``: 37 patches
    cannot be brought to 6, 12, 13, 15, 24, 26, 30 or 33 in this way, nor a grid to one of another aspect.

    Source of both: the repository OpenHelix-Team/Spatial-Forcing (37 to 16 patches).

    Raises:
        ShapeError: With ``scale_factor``, the size is not the student's.
    """

    name = "resample"
    resamples: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = ResampleOptions
    options: ResampleOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        grid = (wanted.shape[2], wanted.shape[3])
        if self.options.scale_factor:
            _require_reachable(features.grid, grid)
        found = _corners_aligned(features, grid) if self.options.align_corners else resample(features, grid)
        return FeatureMap(found.values, found.mask & wanted).sanitized()


def _require_reachable(own: tuple[int, int], grid: tuple[int, int]) -> None:
    ratio = 1 / math.sqrt((own[0] * own[1]) / (grid[0] * grid[1]))
    found = (int(own[0] * ratio), int(own[1] * ratio))
    if found != grid:
        raise ShapeError(
            f"With scale_factor a teacher's grid of {own[0]} x {own[1]} becomes {found[0]} x {found[1]}, and the "
            f"student has {grid[0]} x {grid[1]}.",
            "The released code stops here too. Leave scale_factor out: the target then has the student's grid.",
        )


def _corners_aligned(features: FeatureMap, grid: tuple[int, int]) -> FeatureMap:
    clean = features.sanitized()
    b, v, gh, gw, d = clean.values.shape
    weight = clean.mask.unsqueeze(-1).float()
    stacked = torch.cat([clean.values.float(), weight], -1).permute(0, 1, 4, 2, 3).reshape(b * v, d + 1, gh, gw)
    found = F.interpolate(stacked, size=grid, mode="bilinear", align_corners=True)
    found = found.reshape(b, v, d + 1, *grid).permute(0, 1, 3, 4, 2)
    coverage = found[..., d]
    return FeatureMap(found[..., :d] / coverage.clamp(min=1e-6).unsqueeze(-1), coverage >= 0.5)
