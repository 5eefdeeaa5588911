"""Resampling as a step of its own, to say when and how it is done."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.alignment.resample import resample
from sfkit.config import Options
from sfkit.transforms.base import Transform
from sfkit.types import FeatureMap


class ResampleOptions(Options):
    """Options of :class:`ResampleTransform`."""

    align_corners: bool = Field(
        default=False,
        description="Put the corner patches' centres on each other, without antialiasing, as the released Spatial "
        "Forcing code does: up to 0.28 of a student patch of misregistration at the borders.",
    )


class ResampleTransform(Transform):
    """To the student's grid, bilinear, leaving masked tokens out: ``(b, v, *, *, d)`` to ``(b, v, gh, gw, d)``.

    See :func:`sfkit.alignment.resample.resample`. With ``align_corners`` and a mask, a target is valid if valid tokens
    carry at least half of its weight, as there.

    Source of ``align_corners``: the repository OpenHelix-Team/Spatial-Forcing (37 to 16 patches).
    """

    name = "resample"
    resamples: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = ResampleOptions
    options: ResampleOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        grid = (wanted.shape[2], wanted.shape[3])
        found = _corners_aligned(features, grid) if self.options.align_corners else resample(features, grid)
        return FeatureMap(found.values, found.mask & wanted).sanitised()


def _corners_aligned(features: FeatureMap, grid: tuple[int, int]) -> FeatureMap:
    clean = features.sanitised()
    b, v, gh, gw, d = clean.values.shape
    weight = clean.mask.unsqueeze(-1).float()
    stacked = torch.cat([clean.values.float(), weight], -1).permute(0, 1, 4, 2, 3).reshape(b * v, d + 1, gh, gw)
    found = F.interpolate(stacked, size=grid, mode="bilinear", align_corners=True)
    found = found.reshape(b, v, d + 1, *grid).permute(0, 1, 3, 4, 2)
    coverage = found[..., d]
    return FeatureMap(found[..., :d] / coverage.clamp(min=1e-6).unsqueeze(-1), coverage >= 0.5)
