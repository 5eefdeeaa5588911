"""From pictures to patch tokens, and learned position tables on other grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.errors import ShapeError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalized(images: Tensor) -> Tensor:
    """Pictures ``(..., 3, h, w)`` in [0, 1], less ImageNet's mean, over its deviation.

    By scalars: a tensor of constants would have to be sent to the device, and waited for.
    """
    channels = zip(images.unbind(-3), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], -3)


class PatchConv(nn.Conv2d):
    """A convolution whose stride is its kernel; ``(n, 3, h, w)`` to ``(n, rows * columns, dim)``, row-major."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self._conv_forward(images.to(self.weight.dtype), self.weight, self.bias)
        return maps.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Holds the convolution under the key that checkpoints use (``proj``)."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = PatchConv(patch, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)  # type: ignore[no-any-return]


def patch_grid(images: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of ``(..., 3, h, w)``.

    Raises:
        ShapeError: Not three channels, or a side is no multiple of the patch.
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
    """A learned position table on another grid: bicubic, antialiased, to an explicit size, in float32.

    Args:
        table: ``(1, side * side, dim)`` for a square grid, row-major.
        grid: Rows and columns wanted.

    Returns:
        ``(1, rows * columns, dim)`` float32; the table itself where it is on that grid already.
    """
    side = int(table.shape[1] ** 0.5)
    table = table.float()
    if grid == (side, side):
        return table
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2)
