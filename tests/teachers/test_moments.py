from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.teachers.moments import RunningMoments


@given(st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_in_parts_or_at_once(parts: int, by_position: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(10, 2, 3, 4, generator=g)
    mask = torch.rand(10, 2, 3, generator=g) > 0.3
    whole, pieces = RunningMoments(), RunningMoments()
    whole.update((values, mask))
    for part in torch.tensor_split(torch.arange(10), parts):
        pieces.update((values[part], mask[part]))
    one, two = (moments.mean_and_std(by_position=by_position) for moments in (whole, pieces))
    assert torch.allclose(one[0], two[0], atol=1e-6)
    assert torch.allclose(one[1], two[1], atol=1e-6)
    if not by_position:
        kept = values[mask]
        assert torch.allclose(one[0], kept.mean(0), atol=1e-5)
        assert torch.allclose(one[1], kept.std(0, correction=0), atol=1e-5)


def test_masked_nan_does_not_count() -> None:
    moments = RunningMoments()
    values = torch.ones(2, 3, 4)
    values[:, 0] = torch.nan
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[:, 0] = False
    moments.update((values, mask))
    mean, std = moments.mean_and_std(by_position=True)
    assert torch.equal(mean, torch.ones(3, 4)), "a position never seen takes the overall mean"
    assert torch.equal(std, torch.ones(4)), "a channel that never varies is left alone"


def test_state_round_trip_and_empty() -> None:
    moments, other = RunningMoments(), RunningMoments()
    assert moments.empty
    assert moments.state() == {}
    with pytest.raises(RuntimeError, match="no statistics"):
        moments.mean_and_std(by_position=False)
    moments.update((torch.rand(3, 2, 4), torch.ones(3, 2, dtype=torch.bool)))
    other.load_state(moments.state())
    assert torch.equal(other.mean_and_std(by_position=False)[0], moments.mean_and_std(by_position=False)[0])
