"""Rotary tables, against explicit rotations."""

from __future__ import annotations

import math

import pytest
import torch
from sfkit_backbones.rope import grid_positions, rope_table, rotate

from sfkit.testing.checks import assert_rounded, float64


def test_positions_are_row_major_with_specials_at_the_origin() -> None:
    positions = grid_positions((2, 3), specials=2, offset=1)
    assert positions.tolist() == [[0, 0], [0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


@float64()
def test_each_pair_turns_by_its_own_angle() -> None:
    x = torch.randn(1, 2, 6, 8)
    positions = grid_positions((2, 3), offset=1)
    turned = rotate(x, rope_table(positions, 8))
    for token, (row, column) in enumerate(positions.tolist()):
        for half, place in ((0, row), (4, column)):
            for j in range(2):
                angle = place * 100 ** (-2 * j / 4)
                a, b = x[0, :, token, half + j], x[0, :, token, half + j + 2]
                assert_rounded(turned[0, :, token, half + j], a * math.cos(angle) - b * math.sin(angle))
                assert_rounded(turned[0, :, token, half + j + 2], b * math.cos(angle) + a * math.sin(angle))


@float64()
def test_query_key_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 16)
    near = rope_table(torch.tensor([[2, 5], [4, 6]]), 16)
    far = rope_table(torch.tensor([[7, 1], [9, 2]]), 16)
    products = []
    for cos, sin in (near, far):
        turned_q, turned_k = rotate(q, (cos[:1], sin[:1])), rotate(k, (cos[1:], sin[1:]))
        products.append((turned_q * turned_k).sum())
    assert_rounded(*products)


def test_low_precision_is_turned_in_float32() -> None:
    x = torch.randn(1, 1, 4, 8).bfloat16()
    rope = rope_table(grid_positions((2, 2)), 8)
    assert torch.equal(rotate(x, rope), rotate(x.float(), rope))
    assert rotate(x, rope).dtype == torch.float32


def test_rounded_angles_are_the_products_of_rounded_factors() -> None:
    positions = grid_positions((1, 40), offset=1)
    exact, rounded = rope_table(positions, 16), rope_table(positions, 16, round_angles=True)
    frequency = torch.tensor(100 ** (-2 / 8)).bfloat16()
    angle = (torch.tensor(37.0).bfloat16() * frequency).float()
    assert torch.equal(rounded[0][36, 9], angle.cos())
    assert (exact[0] - rounded[0]).abs().max() > 1e-3


def test_heads_that_do_not_split_in_four_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        rope_table(grid_positions((1, 1)), 6)
