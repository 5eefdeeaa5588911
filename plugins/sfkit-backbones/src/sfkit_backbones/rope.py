"""Rotary position embedding over rows and columns, from tables."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

#: Cosines and sines, each ``(n, head_dim)`` float32.
Rope: TypeAlias = "tuple[Tensor, Tensor]"


def grid_positions(grid: tuple[int, int], *, specials: int = 0, offset: int = 0) -> Tensor:
    """Row and column of each token.

    Args:
        grid: Rows and columns of patches, in row-major order.
        specials: Number of tokens before the patches. They have no place in the image and get (0, 0): no rotation.
        offset: Position of the first row and column.

    Returns:
        ``(specials + rows * columns, 2)`` long.
    """
    rows, columns = grid
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    patches = torch.stack((row, column), -1).reshape(-1, 2) + offset
    return torch.cat((patches.new_zeros(specials, 2), patches))


def rope_table(positions: Tensor, head_dim: int, *, base: float = 100.0, round_angles: bool = False) -> Rope:
    """Cosines and sines for 2-D rotary embedding: rows rotate the first half of a head, columns the second half.

    In a half of ``D`` channels, channels ``j`` and ``j + D/2`` rotate by ``position * base ** (-2j / D)``. CroCo v2,
    DUSt3R and VGGT use this form; DINOv3 uses another.

    Args:
        positions: ``(n, 2)`` rows and columns.
        head_dim: Channels of a head, a multiple of 4.
        base: Base of the geometric series of frequencies.
        round_angles: Round frequencies and angles to bfloat16, as the released code does under CUDA autocast.

    Returns:
        Two tensors ``(n, head_dim)`` float32.

    Raises:
        ValueError: ``head_dim`` is no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary embedding needs heads of a multiple of 4 channels, not {head_dim}.")
    half = head_dim // 2
    frequencies = base ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    places = positions.float()
    if round_angles:
        places, frequencies = places.bfloat16(), frequencies.bfloat16()
    angles = (places.unsqueeze(-1) * frequencies).float()
    # Each frequency serves both channels of its pair: (n, axis, pair, frequency).
    angles = angles.unsqueeze(2).expand(-1, -1, 2, -1).reshape(len(positions), head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate queries or keys ``(..., n, head_dim)`` of any dtype; the result is float32."""
    cos, sin = rope
    first, second = x.float().reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4).unbind(-2)
    partner = torch.stack((-second, first), -2).flatten(-3)
    return torch.addcmul(x * cos, partner, sin)
