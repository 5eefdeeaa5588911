from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfkit.probe import ProbeError, RidgeProbe, probe_error
from sfkit.probe.ridge import DEFAULT_ALPHAS


def linear(
    n: int, d: int, k: int, noise: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.logspace(-2, 2, d) + 3.0
    weights = torch.randn(d, k, generator=torch.Generator().manual_seed(99)) / torch.logspace(-2, 2, d)[:, None]
    y = x @ weights + 5.0 + noise * torch.randn(n, k, generator=g)
    return x, y, torch.arange(n) // 10


@pytest.mark.parametrize(("n", "d"), [(400, 12), (100, 150)])
def test_recovers_a_linear_map_whatever_the_scale_of_features(n: int, d: int) -> None:
    x, y, groups = linear(n, 12, 3)
    if d > 12:  # more features than samples: the other form of the solution
        x = torch.cat([x, 1e-3 * torch.randn(n, d - 12, generator=torch.Generator().manual_seed(1))], 1)
    probe = RidgeProbe.fit(x, y, groups, alphas=(1e-8,))
    assert torch.allclose(probe.predict(x), y.double(), atol=1e-2)


def test_error_on_unseen_samples_is_that_of_the_noise() -> None:
    x, y, groups = linear(2000, 12, 3, noise=0.1)
    probe = RidgeProbe.fit(x[:1500], y[:1500], groups[:1500])
    score = probe_error(probe, x[1500:], y[1500:])
    assert score.rmse == pytest.approx(0.1 * math.sqrt(3), rel=0.1)
    assert score.error < score.rmse
    assert score.r2 > 0.95
    assert score.samples == 500


def test_both_forms_of_the_solution_agree() -> None:
    g = torch.Generator().manual_seed(0)
    x, y, groups = torch.randn(50, 50, generator=g), torch.randn(50, 2, generator=g), torch.arange(50) // 5
    narrow = RidgeProbe.fit(x, y, groups, alphas=(0.3,))
    # A column of zeros makes it wider than long and changes nothing else.
    wide = RidgeProbe.fit(torch.cat([x, torch.zeros(50, 1)], 1), y, groups, alphas=(0.3,))
    assert torch.allclose(wide.coefficients[:50], narrow.coefficients, atol=1e-10)


def test_matches_the_normal_equations() -> None:
    x, y, groups = linear(60, 5, 2, noise=0.5)
    alpha = 0.7
    probe = RidgeProbe.fit(x, y, groups, alphas=(alpha,))
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    want = torch.linalg.solve(z.T @ z / 60 + alpha * torch.eye(5), z.T @ (y.double() - y.double().mean(0)) / 60)
    assert torch.allclose(probe.coefficients, want, atol=1e-10)


def test_noise_explains_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(800, 40, generator=g), torch.randn(800, 2, generator=g)
    probe = RidgeProbe.fit(x[:600], y[:600], torch.arange(600) // 20)
    assert abs(probe_error(probe, x[600:], y[600:]).r2) < 0.05
    assert probe.alpha >= 1.0


def test_the_mean_predictor_is_the_training_mean() -> None:
    x, y, groups = linear(40, 3, 2)
    probe = RidgeProbe.fit(x, y, groups)
    score = probe_error(probe, x[:5] * 0, y[:5] + 7)
    expected = (y[:5].double() + 7 - y.double().mean(0)).square().sum(1)
    assert score.mean_rmse == pytest.approx(float(expected.mean().sqrt()))
    assert score.mean_error == pytest.approx(float(expected.sqrt().mean()))


def test_groups_are_held_out_whole_when_the_strength_is_picked() -> None:
    # Each group has a feature of its own that gives the answer away: seen through a leak, almost no regularisation
    # would look best; with whole groups held out, such features are worthless and much looks best.
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(20).repeat_interleave(10)
    y = torch.randn(20, 1, generator=g).repeat_interleave(10, 0)
    x = torch.nn.functional.one_hot(groups).float() + 0.01 * torch.randn(200, 20, generator=g)
    leaky = torch.randperm(200, generator=g)
    assert RidgeProbe.fit(x, y, groups).alpha >= 1.0
    assert RidgeProbe.fit(x, y, leaky).alpha < 0.1


def test_fitting_looks_at_nothing_but_its_arguments_and_leaves_the_random_state_alone() -> None:
    x, y, groups = linear(60, 4, 1, noise=0.2)
    before = torch.get_rng_state()
    first = RidgeProbe.fit(x, y, groups)
    assert torch.equal(before, torch.get_rng_state())
    again = RidgeProbe.fit(x, y, groups)
    assert first.alpha == again.alpha
    assert torch.equal(first.coefficients, again.coefficients)


@settings(max_examples=25)
@given(shift=st.floats(-100, 100), scale=st.floats(0.01, 100))
def test_predictions_do_not_depend_on_the_units_of_features(shift: float, scale: float) -> None:
    x, y, groups = linear(50, 3, 1, noise=0.3)
    x = x.double()
    plain = RidgeProbe.fit(x, y, groups, alphas=(0.1,)).predict(x)
    moved = x * scale + shift
    assert torch.allclose(RidgeProbe.fit(moved, y, groups, alphas=(0.1,)).predict(moved), plain, atol=1e-5)


def test_constant_features_do_no_harm() -> None:
    x, y, groups = linear(50, 3, 1)
    x = torch.cat([x, torch.full((50, 1), 1 / 3)], 1)
    probe = RidgeProbe.fit(x, y, groups)
    assert bool(probe.coefficients.isfinite().all())
    assert probe.scale[-1] == 1


X, Y = torch.randn(20, 3), torch.randn(20, 1)


@pytest.mark.parametrize(
    ("x", "y", "groups", "alphas", "words"),
    [
        (X, Y, torch.zeros(20).long(), DEFAULT_ALPHAS, "1 group"),
        (X, Y, torch.arange(19), DEFAULT_ALPHAS, "groups has shape"),
        (X[:0], Y[:0], torch.arange(0), DEFAULT_ALPHAS, "no sample"),
        (X, Y[:10], torch.arange(20), DEFAULT_ALPHAS, r"\(n, d\)"),
        (X, Y[:, 0], torch.arange(20), DEFAULT_ALPHAS, r"\(n, k\)"),
        (X * torch.nan, Y, torch.arange(20), DEFAULT_ALPHAS, "NaN"),
        (X, Y / 0, torch.arange(20), DEFAULT_ALPHAS, "infinity"),
        (X, Y, torch.arange(20), (0.0,), "positive"),
        (X, Y, torch.arange(20), (), "positive"),
    ],
)
def test_bad_input_is_explained(
    x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor, alphas: tuple[float, ...], words: str
) -> None:
    with pytest.raises(ProbeError, match=words):
        RidgeProbe.fit(x, y, groups, alphas)


def test_scoring_nothing_is_an_error_and_constant_targets_have_no_r2() -> None:
    probe = RidgeProbe.fit(X, Y, torch.arange(20))
    with pytest.raises(ProbeError, match="no sample"):
        probe_error(probe, X[:0], Y[:0])
    same = RidgeProbe.fit(X, torch.ones(20, 1), torch.arange(20))
    assert math.isnan(probe_error(same, X, torch.ones(20, 1)).r2)
