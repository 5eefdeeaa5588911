"""The figures of the health monitor, each against something that is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.health.figures import (
    SHIFTS,
    drift,
    drift_noise,
    mean_norm,
    moments,
    sample_of,
    shift_errors,
    spread_and_rank,
    variation_over_samples,
)

FULL = torch.ones(4, 2, 5, 6, dtype=torch.bool)


def tokens(d: int = 24, seed: int = 0, b: int = 4) -> torch.Tensor:
    return torch.randn(b, 2, 5, 6, d, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 8))
def test_the_rank_is_the_number_of_directions(k: int) -> None:
    signs = torch.cat([torch.eye(k), -torch.eye(k)]).repeat(20, 1)
    padded = torch.nn.functional.pad(signs, (0, 8))
    spread, rank = spread_and_rank(padded, torch.ones(len(padded), dtype=torch.bool))
    assert float(rank) == pytest.approx(k, rel=1e-3)
    assert float(spread) == pytest.approx(1.0, abs=1e-5)


def test_tokens_of_one_direction_have_no_spread_whatever_their_length() -> None:
    same = torch.randn(16).expand(50, 16) * torch.rand(50, 1).add(0.1)
    assert float(spread_and_rank(same, torch.ones(50, dtype=torch.bool))[0]) < 1e-6
    alone = torch.zeros(50, dtype=torch.bool)
    alone[3] = True
    assert all(math.isnan(float(value)) for value in spread_and_rank(same, alone))


def test_masked_tokens_take_no_part() -> None:
    values, mask = tokens(), FULL.clone()
    mask[:, 1] = False
    spoilt = values.clone()
    spoilt[:, 1] = torch.nan
    for figure in (spread_and_rank, moments):
        for clean, dirty in zip(figure(values, mask), figure(spoilt, mask), strict=True):
            assert torch.equal(clean, dirty)
    assert torch.equal(mean_norm(values, mask), mean_norm(spoilt, mask))
    zeroed = torch.where(mask.unsqueeze(-1), spoilt, 0.0)
    assert torch.equal(variation_over_samples(zeroed, mask), variation_over_samples(values, mask))
    assert torch.equal(shift_errors(spoilt, spoilt, mask), shift_errors(values, values, mask))


def test_variation_sees_what_differs_between_pictures_alone() -> None:
    same = tokens(b=1).expand(4, -1, -1, -1, -1)
    assert float(variation_over_samples(same, FULL)) < 1e-10
    assert float(variation_over_samples(tokens(), FULL)) > 0.5
    assert math.isnan(float(variation_over_samples(same[:1], FULL[:1])))


def test_drift_is_zero_at_first_and_counts_standard_deviations() -> None:
    values = tokens(d=8)
    first = moments(values, FULL)
    assert float(drift(first, first)) == 0
    moved = moments(values + 3 * first[1], FULL)
    assert float(drift(moved, first)) == pytest.approx(3.0, rel=1e-4)
    other = moments(tokens(d=8, seed=1), FULL)
    noise = float(drift_noise(values, FULL, first))
    assert noise / 2 < float(drift(other, first)) < 2 * noise, "two batches of one distribution differ by the noise"
    assert math.isnan(float(drift_noise(values[:1], FULL[:1], first)))


def test_a_sample_of_parameters_is_always_the_same_one() -> None:
    layer = torch.nn.Linear(100, 70)
    layer.bias.requires_grad_(False)
    before = sample_of(layer.parameters())
    assert len(before) <= 1024
    assert torch.equal(before, sample_of(layer.parameters()))
    with torch.no_grad():
        layer.weight.mul_(1.1)
    assert float((sample_of(layer.parameters()) - before).norm() / before.norm()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_of_the_tokens_is_found(shift: tuple[int, int]) -> None:
    target, mask = tokens(d=40, b=16), FULL.repeat(4, 1, 1, 1)
    # The token that tells of a patch stands `shift` away from it.
    student = target.roll(shift, (2, 3)) @ torch.randn(40, 24, generator=torch.Generator().manual_seed(3))
    errors = shift_errors(student, target, mask)
    assert SHIFTS[int(errors.argmin())] == shift
    assert float(errors.min()) < 0.7 < float(errors.sort().values[1])


def test_one_token_later_in_the_sequence_is_one_column_to_the_right() -> None:
    target = tokens()
    flat = target.flatten(1, 3).roll(1, 1).view_as(target)
    assert SHIFTS[int(shift_errors(flat, target, FULL).argmin())] == (0, 1)


def test_a_target_of_position_alone_finds_nothing() -> None:
    place = tokens(b=1).expand(4, -1, -1, -1, -1)
    errors = shift_errors(tokens(seed=1) + place, place, FULL)
    assert bool((errors[0] < errors[1:] * 1.05).all()), "no shift is better than none"


@pytest.mark.parametrize("case", ["one sample", "small grid", "all masked"])
def test_too_little_to_judge_is_unknown(case: str) -> None:
    values, mask = tokens(), FULL
    if case == "one sample":
        values, mask = values[:1], mask[:1]
    elif case == "small grid":
        values, mask = values[:, :, :2], mask[:, :, :2]
    else:
        mask = torch.zeros_like(mask)
    assert bool(shift_errors(values, values, mask).isnan().all())


def test_figures_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    shift_errors(tokens(d=50), tokens(d=50), FULL)
    assert torch.equal(before, torch.get_rng_state())
