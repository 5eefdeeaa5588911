"""Resampling of feature maps, and ImageNet's normalization of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.views.types import FeatureMap

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalized(images: Tensor) -> Tensor:
    """``(..., 3, h, w)`` images in [0, 1] minus ImageNet's mean, over its deviation."""
    # By scalars: a tensor of constants would have to be sent to the device, and waited for.
    channels = zip(images.unbind(-3), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], -3)


_MIN_COVERAGE = 0.5


def resample(features: FeatureMap, grid: tuple[int, int]) -> FeatureMap:
    """Resample to an explicit ``(rows, columns)``: bilinear, cell centers aligned, antialiased when shrinking.

    Masked tokens do not count: each target is the weighted mean of the valid tokens under its kernel, and is valid
    where those carry at least half of the kernel's weight. Explicit sizes and centered cells avoid the two known
    faults of scale factors (``int(37 * r)`` is off by one for many grids) and of ``align_corners=True`` (up to 0.28
    of a patch of shift at the borders).

    Args:
        features: ``(b, v, gh, gw, d)``; computed in float32.
        grid: Target rows and columns.
    """
    clean = features.sanitized()
    if features.grid == grid:
        return FeatureMap(clean.values.float(), clean.mask)
    b, v, gh, gw, d = clean.values.shape
    values = clean.values.float().permute(0, 1, 4, 2, 3).reshape(b * v, d, gh, gw)
    weight = clean.mask.float().reshape(b * v, 1, gh, gw)
    values, coverage = _interpolate(values, grid), _interpolate(weight, grid)
    # The clamp avoids 0 / 0 in cells that the mask below drops.
    values = values / coverage.clamp(min=1e-6)
    values = values.reshape(b, v, d, *grid).permute(0, 1, 3, 4, 2)
    mask = (coverage >= _MIN_COVERAGE).reshape(b, v, *grid)
    return FeatureMap(torch.where(mask.unsqueeze(-1), values, 0.0), mask)


def _interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(n, d, gh, gw)`` to ``(n, d, *size)``."""
    shrinking = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=shrinking)
