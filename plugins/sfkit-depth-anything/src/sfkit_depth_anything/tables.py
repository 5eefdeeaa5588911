"""What depends on the grid alone: the learned positions on it, and the rotations of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_backbones.rope import Rope, grid_positions, rope_table
from torch import Tensor

#: Added to the wanted grid before the scale is computed: DINOv2's guard against rounding down, which moves the samples.
_OFFSET = 0.1


def scaled_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The learned position table on another grid: bicubic without antialias, by scale factor, in float32.

    DINOv2's way, and not the resize to an explicit size of its successors: the scale is ``(cells + 0.1) / side``, so
    that sample points lie a little closer together than the cells do.

    Args:
        table: ``(1, side * side, dim)``, row-major.
        grid: Rows and columns wanted.

    Returns:
        ``(1, rows * columns, dim)`` float32; on the table's own grid the table itself.
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
    """For blocks within a view: patches count from 1, the token in front is not rotated."""
    return rope_table(grid_positions(grid, specials=1, offset=1), head_dim)


def joint_rotation(grid: tuple[int, int], views: int, head_dim: int) -> Rope:
    """For blocks over all views: every patch of every view is at (1, 1), the tokens in front of each view at (0, 0)."""
    positions = torch.ones(1 + grid[0] * grid[1], 2, dtype=torch.long)
    positions[0] = 0
    return rope_table(positions.repeat(views, 1), head_dim)
