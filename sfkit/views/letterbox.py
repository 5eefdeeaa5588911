"""How policies fit a picture into their view: resized without distortion, the rest padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfkit.views.geometry import resize_matrix

Size = tuple[int, int]


class Placement(Protocol):
    """Where the pixels of a picture are in the view. Sizes are height and width."""

    @property
    def source(self) -> Size:
        """Size of the picture in the batch."""

    @property
    def view(self) -> Size:
        """Size of the view."""

    @property
    def matrix(self) -> Tensor:
        """``(3, 3)`` float32: pixel of the picture to pixel of the view."""

    @property
    def valid(self) -> Tensor:
        """``(h, w)`` bool: False where the view shows nothing of the picture."""


@dataclass(frozen=True)
class Letterbox:
    """Where the pixels of a picture are in the view. Sizes are height and width.

    Attributes:
        source: Size of the picture in the batch.
        resized: Its size within the view.
        view: Size of the view.
        offset: Rows of padding above it, and columns to its left.
    """

    source: Size
    resized: Size
    view: Size
    offset: Size = (0, 0)

    @property
    def matrix(self) -> Tensor:
        """``(3, 3)`` float32: pixel of the picture to pixel of the view."""
        return resize_matrix(self.source, self.resized, self.offset)

    @property
    def valid(self) -> Tensor:
        """``(h, w)`` bool: False where the view is padding."""
        inside = torch.zeros(self.view, dtype=torch.bool)
        (top, left), (h, w) = self.offset, self.resized
        inside[top : top + h, left : left + w] = True
        return inside


def unchanged(size: Size) -> Letterbox:
    """A view that is the picture itself."""
    return Letterbox(size, size, size)


def fitted(source: Size, view: Size) -> Size:
    """Size of a picture within a view, rounded as the ``resize_with_pad`` functions of LeRobot 0.6.1 and openpi round.

    The quotient of floats is part of the contract: another order of operations is a pixel off for some sizes.
    """
    ratio = max(source[1] / view[1], source[0] / view[0])
    return int(source[0] / ratio), int(source[1] / ratio)


def pad_around(source: Size, view: Size) -> Letterbox:
    """The picture is in the middle; of an odd number of lines the smaller half comes first (pi0 everywhere)."""
    if source == view:
        return unchanged(source)
    resized = fitted(source, view)
    return Letterbox(source, resized, view, ((view[0] - resized[0]) // 2, (view[1] - resized[1]) // 2))
