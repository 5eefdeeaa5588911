"""Normalizations of the target: over the patches of a view, or over the channels of a patch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ShapeError
from sfkit.transforms.base import Transform
from sfkit.views.types import FeatureMap


class SpatialNormOptions(Options):
    """Options of :class:`SpatialNorm`."""

    gamma: float = Field(default=0.6, ge=0, le=1, description="How much of the mean is taken away.")
    eps: float = Field(default=1e-6, gt=0, description="Added to the deviation.")


class SpatialNorm(Transform):
    """``(t - gamma * mean(t)) / (std(t) + eps)`` for each channel, over the valid patches of each view.

    It takes from the target what all patches share, which a student can match without looking at any. A channel that is
    constant over a view has no deviation: with ``gamma`` below 1 it becomes very large, as published; ``gamma=1`` turns
    it to 0. The deviation is the unbiased one. ``(b, v, gh, gw, d)`` to the same shape.

    Source: iREPA, arXiv 2512.10794 (gamma 0.6 in its latent, 0.8 in its pixel experiments).

    Raises:
        ShapeError: A view has one patch, of which nothing would be left.
    """

    name = "spatial-norm"
    Options: ClassVar[type[Options]] = SpatialNormOptions
    options: SpatialNormOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        if math.prod(features.grid) < 2:
            raise ShapeError(
                f"Transform {self.name!r} standardizes over the patches of a view, and there is one.",
                "Leave it out, or choose a policy and a teacher with a grid.",
            )
        clean = features.sanitized()
        values, mask = clean.values.float(), clean.mask.unsqueeze(-1)
        count = mask.sum((2, 3), keepdim=True)
        mean = values.sum((2, 3), keepdim=True) / count.clamp(min=1)
        centered = torch.where(mask, values - mean, 0.0)
        deviation = (centered.square().sum((2, 3), keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        found = (values - self.options.gamma * mean) / (deviation + self.options.eps)
        return FeatureMap(found, clean.mask).sanitized()


class LayerNormOptions(Options):
    """Options of :class:`LayerNormTransform`."""

    eps: float = Field(default=1e-5, gt=0, description="Added to the variance.")


class LayerNormTransform(Transform):
    """Each patch to mean 0 and variance 1 over its channels, nothing learned; the same shape.

    Takes away what single channels of huge magnitude do to a cosine. Source: layer normalization, arXiv 1607.06450, as
    on the targets of data2vec, arXiv 2202.03555, section 3.3.
    """

    name = "layer-norm"
    Options: ClassVar[type[Options]] = LayerNormOptions
    options: LayerNormOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        values = F.layer_norm(features.sanitized().values.float(), (self.dim,), eps=self.options.eps)
        return FeatureMap(values, features.mask).sanitized()
