"""Schedules as functions of the step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfkit.errors import ConfigError, UnknownNameError
from sfkit.factory.components import build_schedule
from sfkit.registry.registry import default_registry
from sfkit.schedules.base import Product, Schedule

whole = st.integers(1, 500)
factors = st.floats(0, 2)
SPECS = st.one_of(
    st.just("constant"),
    st.builds(lambda n: ("stop", {"at": n}), whole),
    st.builds(lambda n: ("warm-up", {"steps": n}), whole),
    st.builds(lambda n: ("conflict", {"patience": n}), whole),
    st.builds(lambda n, fill: ("every", {"n": n, "compensate": fill}), st.integers(1, 20), st.booleans()),
    st.builds(
        lambda kind, n, delay, to: (kind, {"steps": n, "delay": delay, "to": to}),
        st.sampled_from(["linear", "cosine"]),
        whole,
        st.integers(0, 500),
        st.just(0.0) | factors,
    ),
)


@given(SPECS, st.integers(0, 2000))
def test_factors_are_finite_and_0_once_the_schedule_is_over(spec: Any, step: int) -> None:
    schedule = build_schedule(spec)
    factor = schedule.factor(step)
    assert math.isfinite(factor)
    assert factor >= 0
    if schedule.over(step):
        assert [schedule.factor(step + later) for later in (0, 1, 7, 10**6)] == [0.0] * 4
        assert schedule.over(step + 1), "over means over for good"
    assert schedule.factor(0) > 0, "the first step is always aligned"


@given(st.lists(SPECS, max_size=3), st.integers(0, 2000))
def test_several_multiply_and_the_order_does_not_matter(specs: list[Any], step: int) -> None:
    one, other = build_schedule(specs), build_schedule(specs[::-1])
    assert one.factor(step) == pytest.approx(math.prod(build_schedule(spec).factor(step) for spec in specs))
    assert one.factor(step) == pytest.approx(other.factor(step))
    assert one.over(step) == any(build_schedule(spec).over(step) for spec in specs)


@given(st.lists(SPECS, max_size=3))
def test_specs_build_the_same_again(specs: list[Any]) -> None:
    built = build_schedule(specs)
    again = build_schedule([schedule.spec for schedule in built])
    assert [schedule.spec for schedule in again] == [schedule.spec for schedule in built]
    assert [again.factor(step) for step in range(0, 900, 90)] == [built.factor(step) for step in range(0, 900, 90)]


@given(st.sampled_from(["linear", "cosine"]), whole, st.integers(0, 300), st.floats(0, 1))
def test_decays_fall_from_one_to_the_last_factor(kind: str, steps: int, delay: int, to: float) -> None:
    schedule = build_schedule((kind, {"steps": steps, "delay": delay, "to": to}))
    found = [schedule.factor(step) for step in range(delay + steps + 3)]
    assert found[: delay + 1] == [1.0] * (delay + 1)
    assert found[delay + steps :] == [to] * 3
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(found))


def test_the_formulas() -> None:
    cosine = build_schedule(("cosine", {"steps": 8, "delay": 2, "to": 0.2}))
    assert cosine.factor(4) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 2 / 8)) / 2)
    assert build_schedule("linear:10").factor(3) == pytest.approx(0.7)
    assert [build_schedule("warm-up:4").factor(s) for s in (0, 1, 4, 9)] == [0.2, 0.4, 1.0, 1.0]
    assert [build_schedule("stop:3").factor(s) for s in range(5)] == [1, 1, 1, 0, 0]
    assert [build_schedule("every:3").factor(s) for s in range(7)] == [1, 0, 0, 1, 0, 0, 1]
    assert build_schedule(("every", {"n": 3, "compensate": True})).factor(3) == 3


def test_a_warm_up_is_followed_by_a_decay() -> None:
    both = build_schedule(["warm-up:10", ("cosine", {"delay": 10, "steps": 100})])
    found = [both.factor(step) for step in range(120)]
    assert max(found) == found[10] == 1
    assert found[:11] == sorted(found[:11])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert both.describe() == "warm-up(steps=10) × cosine(steps=100, delay=10)"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("stop:0", "at must be >= 1, got '0'"),
        ("stop:-3", "at must be >= 1, got '-3'"),
        (("linear", {"steps": -1}), "steps must be >= 1, got -1"),
        (("linear", {"steps": 5, "to": -0.5}), "to must be >= 0, got -0.5"),
        (("linear", {"steps": 5, "to": math.nan}), "to must be a finite number"),
        ("cosine:many", "steps must be a whole number, got 'many'"),
        ("cosine", "cosine:<steps>"),
        ("every:0", "n must be >= 1"),
        ({"name": "warm-up", "steps": 3, "stepz": 3}, "stepz"),
        ("constant:3", "takes nothing after a colon"),
        (3, "Cannot read a component"),
    ],
)
def test_bad_options_are_explained(value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_schedule(value)
    assert says in str(caught.value)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        build_schedule("cosin")


class Odd(Schedule):
    name = "odd"
    value = 0.0

    def factor(self, step: int) -> float:
        return self.value

    def over(self, step: int) -> bool:
        return self.value == 0


def test_what_a_schedule_of_ones_own_does_wrong_is_an_error() -> None:
    with pytest.raises(ConfigError, match="odd never aligns"):
        build_schedule(["constant", Odd()])
    for value in (-1.0, math.nan, math.inf):
        odd = Odd()
        odd.value = value
        with pytest.raises(ConfigError, match=r"'odd' gave the factor .* at step 3"):
            Product([odd]).factor(3)


def test_every_built_in_schedule_is_registered_with_its_own_name() -> None:
    entries = default_registry().of_kind("schedule")
    # Those that the strategies above draw from: a new one is added to them, and so to every test here.
    assert {"conflict", "constant", "cosine", "every", "linear", "stop", "warm-up"} == {e.name for e in entries}
    for entry in entries:
        cls = entry.load()
        assert cls.name == entry.name
        assert entry.argument in {"", *cls.Options.model_fields}
