"""Resampling to the student's grid: explicit sizes, centered cells, masks respected."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.views.resample import IMAGENET_MEAN, IMAGENET_STD, imagenet_normalized, resample
from sfkit.views.types import FeatureMap

sides = st.integers(1, 37)


def ramp(h: int, w: int) -> FeatureMap:
    """Channels hold each cell's center, from 0 to 1 over the image."""
    y = (torch.arange(h) + 0.5) / h
    x = (torch.arange(w) + 0.5) / w
    values = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[None, None]
    return FeatureMap(values, torch.ones(1, 1, h, w, dtype=torch.bool))


@given(sides, sides, sides, sides)
def test_any_grid_to_any_grid(h: int, w: int, gh: int, gw: int) -> None:
    out = resample(ramp(h, w), (gh, gw))
    assert out.grid == (gh, gw)
    assert out.mask.all()
    assert out.values.min() >= -1e-5
    assert out.values.max() <= 1 + 1e-5


@pytest.mark.parametrize("side", [6, 12, 13, 15, 16, 24, 26, 30, 33])
def test_fault_17_and_18_cell_centers_stay_where_they_are(side: int) -> None:
    # These sizes are the ones at which int(37 * ratio) is off by one; align_corners moves borders by 0.28 of a cell.
    out, expected = resample(ramp(37, 37), (side, side)), ramp(side, side)
    inner = slice(2, -2)
    off = (out.values - expected.values)[0, 0, inner, inner].abs().max() * side
    assert off < 0.1, f"{off:.3f} of a cell"


def test_rows_and_columns_are_not_exchanged() -> None:
    values = torch.zeros(1, 1, 4, 8, 1)
    values[0, 0, 0] = 1.0
    out = resample(FeatureMap(values, torch.ones(1, 1, 4, 8, dtype=torch.bool)), (2, 2))
    assert (out.values[0, 0, 0] > out.values[0, 0, 1]).all()
    assert torch.equal(out.values[0, 0, :, 0], out.values[0, 0, :, 1])


@given(sides, sides, st.integers(0, 2**31))
def test_masked_content_never_matters(side: int, target: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 2, side, side, 3, generator=g)
    mask = torch.rand(2, 2, side, side, generator=g) > 0.4
    poisoned = torch.where(mask.unsqueeze(-1), values, torch.nan)
    one, two = (
        resample(FeatureMap(values, mask), (target, target)),
        resample(FeatureMap(poisoned, mask), (target, target)),
    )
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.mask, two.mask)
    assert one.values.isfinite().all()


def test_a_constant_stays_constant_beside_masked_cells() -> None:
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :3] = False
    out = resample(FeatureMap(torch.full((1, 1, 8, 8, 1), 7.0), mask), (4, 4))
    assert torch.allclose(out.values[out.mask], torch.tensor(7.0))
    assert out.mask[0, 0, 0].tolist() == [False, True, True, True]


def test_low_precision_is_computed_in_float32() -> None:
    values = ramp(16, 16).values
    out = resample(FeatureMap(values.bfloat16(), torch.ones(1, 1, 16, 16, dtype=torch.bool)), (8, 8))
    assert out.values.dtype == torch.float32


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    images = torch.rand(2, 3, 3, 4, 5)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(imagenet_normalized(images), (images - mean) / std)
