"""Detect the effects of openpi's preprocessing in the images: letterbox bars, and moved pixels."""

from __future__ import annotations

import torch
from torch import Tensor

#: The color jitter is the same for all pixels of an image, so the pixels of bars differ by rounding only.
_ROUNDING = 1e-5
#: Largest factor of the jitter on the difference of two dark colors: brightness 1.3 times contrast 1.4.
_WIDEST = 1.82


def has_bars(image: Tensor, black: float = 0.0) -> Tensor:
    """``(b,)`` bool: images with a black line along one of their borders, before augmentation.

    Args:
        image: ``(b, 3, h, w)`` in [-1, 1]; ``ResizeImages`` pads with exactly -1.
        black: Largest brightness of black, in [0, 1].
    """
    dark = (image <= -1 + 2 * black).all(1)
    rows, columns = dark.all(2), dark.all(1)
    return rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]


def inside_bars(seen: Tensor, black: float = 0.0) -> Tensor:
    """``(b, h, w)`` bool: False on bars, also after augmentation.

    Brightness, contrast and saturation keep the order of grays, so black bars remain the darkest gray of the image,
    uniform, and connected with the border. The same holds for the wedges of a rotation. Equally dark areas of the scene
    that reach the border in a straight line are masked as well.

    Args:
        seen: ``(b, 3, h, w)`` in [0, 1], augmented.
        black: As in :func:`has_bars`.
    """
    gray = seen.mean(1)
    darkest = gray.amin((1, 2), keepdim=True)
    bar = gray <= darkest + _ROUNDING + _WIDEST * black
    outside = torch.zeros_like(bar)
    for dim in (1, 2):
        outside |= bar.int().cumprod(dim).bool()
        outside |= bar.flip(dim).int().cumprod(dim).bool().flip(dim)
    return ~outside


def moved(image: Tensor, seen: Tensor) -> bool | None:
    """Whether augmentation moved pixels, beside changing colors; None if the images do not show it.

    openpi's jitter is one affine map of colors for each image. If no affine map explains the augmented colors, the
    image was cropped, rotated or otherwise moved.

    Args:
        image: ``(b, 3, h, w)`` in [-1, 1] before augmentation, of the samples that have the camera.
        seen: ``(b, 3, h, w)`` in [0, 1] after augmentation.
    """
    if image.shape != seen.shape:
        return True
    verdicts = [found for pair in zip(image, seen, strict=True) if (found := _moved(*pair)) is not None]
    return any(verdicts) if verdicts else None


def _moved(image: Tensor, seen: Tensor) -> bool | None:
    """:func:`moved` for one sample: ``(3, h, w)`` before and after augmentation."""
    unclamped = ((seen > 1e-3) & (seen < 1 - 1e-3)).all(0).flatten()
    colors = image.flatten(1).mT[unclamped].double()
    after = seen.flatten(1).mT[unclamped].double()
    if len(after) < 64 or float(after.std()) < 0.02:
        return None
    design = torch.cat([colors, torch.ones_like(colors[:, :1])], 1)
    # A ridge far below the noise keeps gray images, whose channels are equal, solvable.
    gram = design.mT @ design + 1e-9 * len(design) * torch.eye(4, dtype=design.dtype, device=design.device)
    residual = after - design @ torch.linalg.solve(gram, design.mT @ after)
    return float(residual.square().mean().sqrt()) > 2e-3
