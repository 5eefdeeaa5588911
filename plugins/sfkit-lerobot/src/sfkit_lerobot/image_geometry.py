"""How an image becomes a view in several steps: padded, resized, cropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.views.geometry import resize_matrix, warp_nearest
from sfkit_lerobot.letterbox import Size


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Where the pixels of an image are in the view. Sizes are height and width; each step gives a new one.

    Attributes:
        source: Size of the image in the batch.
        view: Size of the view.
        matrix: ``(3, 3)`` float32: pixel of the image to pixel of the view.
    """

    source: Size
    view: Size
    matrix: Tensor

    @classmethod
    def of(cls, source: Size) -> ImageGeometry:
        """A view that is the image itself."""
        return cls(source, source, torch.eye(3))

    def resized(self, size: Size) -> ImageGeometry:
        """Stretched to a size, edges on edges."""
        return ImageGeometry(self.source, size, resize_matrix(self.view, size) @ self.matrix)

    def placed(self, size: Size, top: int, left: int) -> ImageGeometry:
        """Put so many pixels below the upper and right of the left edge of a canvas; negative numbers crop."""
        return ImageGeometry(self.source, size, resize_matrix(self.view, self.view, (top, left)) @ self.matrix)

    @property
    def valid(self) -> Tensor:
        """``(h, w)`` bool: False where the view shows nothing of the image."""
        return warp_nearest(torch.ones(1, *self.source), self.matrix, self.view)[0].bool()
