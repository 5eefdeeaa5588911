"""From images to patch tokens, and learned position tables on other grids."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.errors import ShapeError


class PatchConv(nn.Conv2d):
    """A convolution whose stride is its kernel size."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """``(n, 3, h, w)`` to ``(n, rows * columns, dim)``, row-major."""
        maps: Tensor = self._conv_forward(images.to(self.weight.dtype), self.weight, self.bias)
        return maps.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Holds the convolution under the key ``proj`` of the checkpoints."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = PatchConv(patch, dim)

    def forward(self, images: Tensor) -> Tensor:
        """``(n, 3, h, w)`` to ``(n, rows * columns, dim)``, row-major."""
        return self.proj(images)  # type: ignore[no-any-return]


def patch_grid(images: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of the patches of images ``(..., 3, h, w)``.

    Raises:
        ShapeError: The images do not have three channels, or a side is no multiple of the patch.
    """
    if images.ndim < 4 or images.shape[-3] != 3:
        raise ShapeError(f"Images have shape {tuple(images.shape)}, expected (..., 3, h, w).")
    if 0 in images.shape:
        raise ShapeError(f"Images have shape {tuple(images.shape)}: there is no view to look at.")
    h, w = images.shape[-2:]
    if h % patch or w % patch:
        near = tuple(max(patch, round(side / patch) * patch) for side in (h, w))
        raise ShapeError(
            f"Images are {h}x{w} pixels, which does not divide into patches of {patch}.",
            f"Resize them to {near[0]}x{near[1]}.",
        )
    return h // patch, w // patch


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a learned position table to another grid: bicubic, antialiased, to an explicit size, in float32.

    Args:
        table: ``(1, side * side, dim)`` for a square grid, row-major.
        grid: Rows and columns of the result.

    Returns:
        ``(1, rows * columns, dim)`` float32; the table itself if it has that grid already.
    """
    side = int(table.shape[1] ** 0.5)
    table = table.float()
    if grid == (side, side):
        return table
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2)
