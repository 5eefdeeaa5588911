from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_tools import ProbeError, RidgeProbe, probe_error
from sfkit_tools.ridge import DEFAULT_ALPHAS


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


def by_the_normal_equations(x: torch.Tensor, y: torch.Tensor, alpha: float, unseen: torch.Tensor) -> torch.Tensor:
    mean, scale = x.mean(0), x.std(0, correction=0)
    z = (x - mean) / scale
    left = z.T @ z / len(x) + alpha * torch.eye(x.shape[1], dtype=torch.float64)
    return (unseen - mean) / scale @ torch.linalg.solve(left, z.T @ (y - y.mean(0)) / len(x)) + y.mean(0)


@pytest.mark.parametrize("d", [5, 200])
def test_matches_the_normal_equations(d: int) -> None:
    x, y, groups = linear(60, d, 2, noise=0.5)
    x, y, unseen = x.double(), y.double(), linear(30, d, 2, seed=1)[0].double()
    predicted = RidgeProbe.fit(x, y, groups, alphas=(0.7,)).predict(unseen)
    torch.testing.assert_close(predicted, by_the_normal_equations(x, y, 0.7, unseen), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "d", "k", "noise"), [(240, 20, 1, 30.0), (240, 20, 3, 1.0), (120, 300, 2, 10.0)])
def test_four_folds_of_shuffled_groups_pick_the_strength(n: int, d: int, k: int, noise: float) -> None:
    x, y, groups = linear(n, d, k, noise=noise)
    x, y, count = x.double(), y.double(), n // 10
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    errors = dict.fromkeys(DEFAULT_ALPHAS, 0.0)
    for held in range(4):
        outside = torch.isin(groups, torch.tensor(order[held::4]))
        for alpha in DEFAULT_ALPHAS:
            predicted = by_the_normal_equations(x[~outside], y[~outside], alpha, x[outside])
            errors[alpha] += float((predicted - y[outside]).square().sum())
    probe = RidgeProbe.fit(x, y, groups)
    assert probe.alpha == min(errors, key=lambda alpha: errors[alpha])
    assert DEFAULT_ALPHAS[0] < probe.alpha < DEFAULT_ALPHAS[-1]
    torch.testing.assert_close(probe.predict(x), by_the_normal_equations(x, y, probe.alpha, x), rtol=1e-6, atol=1e-6)


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
    # Each group has a feature of its own that gives the answer away: seen through a leak, almost no regularization
    # would look best; with whole groups held out, such features are worthless and much looks best.
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(20).repeat_interleave(10)
    y = torch.randn(20, 1, generator=g).repeat_interleave(10, 0)
    x = torch.nn.functional.one_hot(groups).float() + 0.01 * torch.randn(200, 20, generator=g)
    leaky = torch.randperm(200, generator=g)
    assert RidgeProbe.fit(x, y, groups).alpha >= 1.0
    assert RidgeProbe.fit(x, y, leaky).alpha < 0.1


def test_fitting_uses_its_arguments_only_and_no_random_state() -> None:
    x, y, groups = linear(60, 4, 1, noise=0.2)
    before = torch.get_rng_state()
    first = RidgeProbe.fit(x, y, groups)
    assert torch.equal(before, torch.get_rng_state())
    again = RidgeProbe.fit(x, y, groups)
    assert first.alpha == again.alpha
    assert torch.equal(first.predict(x), again.predict(x))


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
    torch.testing.assert_close(probe.predict(x), RidgeProbe.fit(x[:, :-1], y, groups).predict(x[:, :-1]))


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


def test_no_sample_is_an_error_and_constant_targets_have_no_r2() -> None:
    probe = RidgeProbe.fit(X, Y, torch.arange(20))
    with pytest.raises(ProbeError, match="no sample"):
        probe_error(probe, X[:0], Y[:0])
    same = RidgeProbe.fit(X, torch.ones(20, 1), torch.arange(20))
    assert math.isnan(probe_error(same, X, torch.ones(20, 1)).r2)
