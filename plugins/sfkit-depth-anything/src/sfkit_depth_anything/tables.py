"""Tensors that depend on the grid only: learned positions, and rotary tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_backbones.rope import Rope, grid_positions, rope_table
from torch import Tensor

#: DINOv2 adds this to the grid before it computes the scale, against rounding down. It moves the sample points.
_OFFSET = 0.1


def scaled_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a learned position table to another grid: bicubic without antialias, by scale factor, in float32.

    This is DINOv2's method; its successors resize to an explicit size. The scale is ``(cells + 0.1) / side``: sample
    points are a little closer together than the cells.

    Args:
        table: ``(1, side * side, dim)``, row-major.
        grid: Rows and columns of the result.

    Returns:
        ``(1, rows * columns, dim)`` float32; the table itself if it has that grid already.
    """
    side = int(table.shape[1] ** 0.5)
    table = table.float()
    if grid == (side, side):
        return table
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    rows, columns = ((cells + _OFFSET) / side for cells in grid)
    resized = F.interpolate(square, scale_factor=(rows, columns), mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def view_rotation(grid: tuple[int, int], head_dim: int) -> Rope:
    """Rotary table for blocks within a view: patches count from 1, and the class token has no rotation."""
    return rope_table(grid_positions(grid, specials=1, offset=1), head_dim)


def joint_rotation(grid: tuple[int, int], views: int, head_dim: int) -> Rope:
    """Rotary table for blocks over all views: all patches are at (1, 1), the class tokens at (0, 0)."""
    positions = torch.ones(1 + grid[0] * grid[1], 2, dtype=torch.long)
    positions[0] = 0
    return rope_table(positions.repeat(views, 1), head_dim)
