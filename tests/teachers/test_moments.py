from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.teachers.moments import RunningMoments
from sfkit.testing.checks import assert_rounded


@given(st.integers(1, 5), st.integers(0, 1000))
def test_in_parts_or_at_once(parts: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(10, 3, 4, generator=g)
    mask = torch.rand(10, 3, generator=g) > 0.3
    whole, pieces = RunningMoments(), RunningMoments()
    whole.update({"a": (values, mask)})
    for part in torch.tensor_split(torch.arange(10), parts):
        pieces.update({"a": (values[part], mask[part])})
    assert_rounded(whole.mean("a"), pieces.mean("a"))
    assert_rounded(whole.std(), pieces.std())


@given(st.integers(0, 1000))
def test_against_torch(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(50, 4, generator=g)
    mask = torch.rand(50, generator=g) > 0.3
    moments = RunningMoments()
    moments.update({"all": (values, mask)})
    assert_rounded(moments.mean("all"), values[mask].mean(0))
    assert_rounded(moments.std(), values[mask].std(0, correction=0))


def test_the_deviation_is_about_each_names_and_positions_own_mean() -> None:
    noise = torch.randn(200, 3, 2)
    offsets = torch.tensor([0.0, 100.0, -50.0])[:, None]
    mask = torch.ones(200, 3, dtype=torch.bool)
    moments = RunningMoments()
    moments.update({"left": (noise + offsets, mask), "right": (noise - 2 * offsets, mask)})
    wanted = (noise - noise.mean(0)).square().mean((0, 1)).sqrt()
    assert_rounded(moments.std(), wanted)
    assert_rounded(moments.mean("right"), (noise - 2 * offsets).mean(0))


def test_masked_nan_does_not_count_and_unseen_positions_take_the_overall_mean() -> None:
    moments = RunningMoments()
    values = torch.ones(2, 3, 4)
    values[:, 0] = torch.nan
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[:, 0] = False
    moments.update({"a": (values, mask)})
    assert torch.equal(moments.mean("a"), torch.ones(3, 4))
    assert torch.equal(moments.mean("never seen"), torch.ones(4))
    assert torch.equal(moments.std(), torch.ones(4)), "a channel that never varies is left alone"


def test_state_round_trip_and_empty() -> None:
    moments, other = RunningMoments(), RunningMoments()
    assert moments.empty
    assert moments.state() == {}
    with pytest.raises(RuntimeError, match="no statistics"):
        moments.mean("all")
    moments.update({"observation.images.front": (torch.rand(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))})
    other.load_state(moments.state())
    assert torch.equal(other.mean("observation.images.front"), moments.mean("observation.images.front"))
    assert torch.equal(other.std(), moments.std())
