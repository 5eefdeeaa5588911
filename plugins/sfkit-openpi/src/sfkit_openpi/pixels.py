"""What openpi's preprocessing has done to the images, as far as it can be seen from the images themselves."""

from __future__ import annotations

import torch
from torch import Tensor

#: Colors are made by the same operations everywhere, so bars differ by rounding alone.
_ROUNDING = 1e-5
#: How much the jitter can widen the difference between two dark colors: brightness 1.3 times contrast 1.4.
_WIDEST = 1.82


def has_bars(image: Tensor, black: float = 0.0) -> Tensor:
    """``(b,)`` bool: which images, before augmentation, have a black line along one of their borders.

    Args:
        image: ``(b, 3, h, w)`` in [-1, 1]; ``ResizeImages`` pads with exactly -1.
        black: What counts as black, above the least value, in [0, 1].
    """
    dark = (image <= -1 + 2 * black).all(1)
    rows, columns = dark.all(2), dark.all(1)
    return rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]


def inside_bars(seen: Tensor, black: float = 0.0) -> Tensor:
    """``(b, h, w)`` bool: False on bars, wherever the augmentation has moved them and whatever color they now have.

    Brightness, contrast and saturation keep the order of grays, so that black bars stay the darkest gray of the
    image, uniform, and connected with the border; so are the wedges that a rotation turns in. What is as dark within
    the image, and reaches the border in a straight line, is taken for bars as well.

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
    """Whether pixels have changed their places, and not only their colors; None where that cannot be told.

    The jitter of openpi maps colors by one affine map for each image. So if none explains what was seen, the image
    was cropped, turned or otherwise moved.

    Args:
        image: ``(b, 3, h, w)`` in [-1, 1], before augmentation; of those samples that have the camera.
        seen: ``(b, 3, h, w)`` in [0, 1], afterward.
    """
    if image.shape != seen.shape:
        return True
    verdicts = [found for pair in zip(image, seen, strict=True) if (found := _moved(*pair)) is not None]
    return any(verdicts) if verdicts else None


def _moved(image: Tensor, seen: Tensor) -> bool | None:
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
