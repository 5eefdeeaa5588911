"""Linear CKA against its formula, and that resampling does not push it up."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_tools import end_anchored, linear_cka, uniform

from sfkit.errors import ConfigError, ShapeError


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_the_formula(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


@settings(max_examples=25)
@given(st.integers(3, 20), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_it_is_the_formula_and_minds_no_rotation(n: int, d: int, k: int, seed: int) -> None:
    x, y = features(n, d, seed), features(n, k, seed + 1)
    value = linear_cka(x, y)
    assert value == pytest.approx(by_the_formula(x, y), abs=1e-4)
    turn = torch.linalg.qr(features(d, d, seed + 2))[0]
    assert linear_cka(3.0 * x @ turn + 5.0, y) == pytest.approx(value, abs=1e-4)
    assert linear_cka(y, x) == pytest.approx(value, abs=1e-6)
    assert linear_cka(x, x) == pytest.approx(1.0)


def test_a_weight_of_two_is_a_token_twice() -> None:
    x, y = features(8, 3, 0), features(8, 4, 1)
    weights = torch.tensor([2.0, 1, 0, 1, 3, 1, 1, 1])
    repeated = torch.arange(8).repeat_interleave(weights.long())
    assert linear_cka(x, y, weights) == pytest.approx(linear_cka(x[repeated], y[repeated]))


def test_what_is_not_alike_stays_so_when_samples_are_drawn_twice() -> None:
    x, y = features(120, 40, 0), features(120, 40, 1)
    groups = torch.arange(120) // 10
    drawn = torch.bincount(torch.randint(12, (12,), generator=torch.Generator().manual_seed(2)), minlength=12)
    weights = drawn[groups].double()
    assert abs(linear_cka(x, y, groups=groups)) < 0.02
    assert abs(linear_cka(x, y, weights, groups)) < 0.05
    assert linear_cka(x, y, weights) > 0.3  # the plain value, of twins and of each token with itself
    assert linear_cka(x, x, weights, groups) == pytest.approx(1.0)


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match=r"must be \(n, d\) and \(n, k\)"):
        linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))
    assert linear_cka(torch.ones(3, 2), features(3, 2, 0)) != linear_cka(torch.ones(3, 2), features(3, 2, 0))  # NaN


@given(st.integers(2, 64), st.data())
def test_several_layers_are_spread(num_layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, num_layers - 1))
    for layers in (uniform(num_layers, count), end_anchored(num_layers, count)):
        assert len(set(layers)) == count
        assert list(layers) == sorted(layers)
        assert all(0 <= layer <= num_layers for layer in layers)
    assert end_anchored(num_layers, count)[-1] == num_layers
    gaps = {b - a for a, b in itertools.pairwise(layers)}
    assert len(gaps) <= 1


def test_known_choices() -> None:
    assert uniform(32, 3) == (8, 16, 24)
    assert end_anchored(32, 4) == (8, 16, 24, 32)
    assert end_anchored(18, 4) == (6, 10, 14, 18)
    with pytest.raises(ConfigError, match="3 layers cannot be spread over 3 blocks"):
        uniform(3, 3)
