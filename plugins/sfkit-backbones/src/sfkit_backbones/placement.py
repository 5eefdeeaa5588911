"""Placement of a view on a network's input canvas, and the map back to the view's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.views.types import FeatureMap

#: Height and width in pixels.
Size: TypeAlias = "tuple[int, int]"

Fit = Literal["keep", "pad", "crop", "stretch"]


@dataclass(frozen=True)
class Placement:
    """A resized view on a canvas; all sizes in pixels.

    Attributes:
        canvas: Size of the network's input.
        scaled: Size of the resized view.
        top: First row of the resized view on the canvas; negative where the view is cropped.
        left: First column of the resized view on the canvas; negative where the view is cropped.
    """

    canvas: Size
    scaled: Size
    top: int = 0
    left: int = 0

    @property
    def fills(self) -> bool:
        """Whether the resized view covers exactly the canvas."""
        return self.canvas == self.scaled and self.top == 0 and self.left == 0


def place(view: Size, side: int, patch: int, fit: Fit) -> Placement:
    """The placement of a view for a network that takes any multiple of its patch.

    Args:
        view: Size of the view.
        side: Side of the canvas, a multiple of ``patch``.
        patch: Side of a patch.
        fit: ``keep``: the longer side becomes ``side``, the other the nearest multiple of ``patch``. ``pad``: the same,
            centered on a square. ``crop``: the width becomes ``side``, and rows beyond a height of ``side`` are cropped
            on both sides. ``stretch``: a square, for any aspect.
    """
    h, w = view
    if fit == "stretch":
        return Placement((side, side), (side, side))
    if fit == "crop":
        scaled = (_multiple(h * side / w, patch), side)
        height = min(scaled[0], side)
        return Placement((height, side), scaled, top=-((scaled[0] - height) // 2))
    longest = max(h, w)
    scaled = (_multiple(h * side / longest, patch), _multiple(w * side / longest, patch))
    if fit == "keep":
        return Placement(scaled, scaled)
    return Placement((side, side), scaled, top=(side - scaled[0]) // 2, left=(side - scaled[1]) // 2)


def _multiple(pixels: float, patch: int) -> int:
    return max(patch, round(pixels / patch) * patch)


def paint(images: Tensor, placement: Placement, *, fill: float, antialias: bool = True) -> Tensor:
    """Resize images and place them on their canvas.

    Args:
        images: ``(..., 3, h, w)`` float in [0, 1].
        placement: Position and scale.
        fill: Gray level of the padding, in [0, 1].
        antialias: Widen the bicubic kernel when shrinking, and use the kernel of Pillow (a = -0.5) in any case;
            False is torch's plain bicubic (a = -0.75).

    Returns:
        ``(..., 3, *canvas)`` float32, clamped to [0, 1]: 8-bit images lose bicubic overshoot too.
    """
    flat = images.float().flatten(0, -4)
    if tuple(flat.shape[-2:]) != placement.scaled:
        flat = F.interpolate(flat, placement.scaled, mode="bicubic", align_corners=False, antialias=antialias)
        flat = flat.clamp(0, 1)
    return canvas_of(flat, placement, fill).reshape(*images.shape[:-2], *placement.canvas)


def canvas_of(scaled: Tensor, placement: Placement, fill: float) -> Tensor:
    """Crop or pad resized images ``(n, 3, *scaled)`` to ``(n, 3, *canvas)``."""
    if placement.fills:
        return scaled
    bottom = placement.canvas[0] - placement.scaled[0] - placement.top
    right = placement.canvas[1] - placement.scaled[1] - placement.left
    # F.pad crops where an amount is negative.
    return F.pad(scaled, (placement.left, right, placement.top, bottom), value=fill)


def read_back(features: Tensor, placement: Placement) -> FeatureMap:
    """Interpolate features on the canvas to a map over the view.

    Args:
        features: ``(b, v, rows, columns, d)``, on a grid that divides the canvas evenly.
        placement: Position and scale of the view on the canvas.

    Returns:
        A map over the view. Its cell size is the one nearest to the canvas's cell size that divides the view evenly. A
        cell is invalid where its center was cropped away. The features are unchanged where the view fills the canvas.
    """
    if placement.fills:
        return FeatureMap(features, torch.ones(features.shape[:-1], dtype=torch.bool, device=features.device))
    rows, columns = features.shape[2:4]
    down, row_mask = _axis(placement.scaled[0], placement.top, placement.canvas[0], rows)
    across, column_mask = _axis(placement.scaled[1], placement.left, placement.canvas[1], columns)
    down, across = down.to(features), across.to(features)
    values = torch.einsum("rx,bvxyd,cy->bvrcd", down, features, across)
    mask = (row_mask[:, None] & column_mask[None]).to(features.device)
    return FeatureMap(values, mask.expand(values.shape[:-1]).clone())


def _axis(scaled: int, offset: int, canvas: int, count: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation weights at the view's cell centers, ``(cells, count)``, and ``(cells,)`` bool: on canvas."""
    step = canvas / count
    cells = max(1, round(scaled / step))
    centers = offset + (torch.arange(cells, dtype=torch.float64) + 0.5) * scaled / cells
    at = (centers / step - 0.5).clamp(0, count - 1)
    low = at.floor().long().clamp(max=max(count - 2, 0))
    share = at - low
    weights = torch.zeros(cells, count, dtype=torch.float64)
    rows = torch.arange(cells)
    weights[rows, low] += 1 - share
    weights[rows, (low + 1).clamp(max=count - 1)] += share
    return weights.float(), (centers >= 0) & (centers < canvas)
