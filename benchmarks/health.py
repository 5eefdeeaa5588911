"""What the health monitor costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.pairs import Pairs, Ratio, interleave
from benchmarks.policies import Subject, demo_smolvla, wide_smolvla
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, one_thread, row, training_step
from sfkit import SpatialForcing
from sfkit.config import HealthOptions

_LIMIT = 0.01
_EVERY = HealthOptions().every
_GEOMETRY = ("geometry", {"calibration_steps": 0})


def steps(*, quick: bool) -> int:
    return 2 + 2 + 2 if quick else (30 + 3) + (8 + 2) + (12 + 1)


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    demo, wide = demo_smolvla(2 if quick else 16), wide_smolvla(quick=quick)
    rows: list[Row] = []
    with one_thread():
        for what, subject, pairs, warmup in (
            ("demonstration", demo, *((1, 1) if quick else (30, 3))),
            ("SmolVLA-450M's widths", wide, *((1, 1) if quick else (8, 2))),
        ):
            rows += _of_a_measured_step(what, subject, pairs, warmup, advance)
        rows.append(_of_a_round(demo, *((1, 1, 3) if quick else (12, 1, _EVERY)), advance))
    return Report(
        name="health",
        title=f"Training step with the health monitor, over one without; it measures one step of {_EVERY}",
        rows=rows,
        conditions={"demonstration": demo.about(), "SmolVLA-450M's widths": wide.about(), "threads": 1},
    )


def _of_a_measured_step(
    what: str, subject: Subject, pairs: int, warmup: int, advance: Callable[[], None]
) -> tuple[Row, Row]:
    """What a measured step costs over one that is not, and so how much it is of all steps."""
    found = _compare(subject, every=1, length=1, pairs=pairs, warmup=warmup, advance=advance)
    share, cpu = (_per_step(found.ratio(clock)) for clock in ("wall", "cpu"))
    spread = Row(
        f"{what}: spread over {_EVERY} steps",
        _percent(share),
        f"under {_LIMIT:.0%} of a step",
        at_most(_LIMIT)(share),
        _percent(cpu),
        {"pairs": pairs, "wall": vars(share), "cpu": vars(cpu)},
    )
    return row(f"{what}: a measured step over another", found), spread


def _of_a_round(subject: Subject, pairs: int, warmup: int, length: int, advance: Callable[[], None]) -> Row:
    """As many steps as lie between two measurements, so that each round has one."""
    found = _compare(subject, every=length, length=length, pairs=pairs, warmup=warmup, advance=advance)
    target, judge = f"at most {1 + _LIMIT:.2f}", at_most(1 + _LIMIT)
    return row(f"demonstration: {length} steps, one of them measured", found, target=target, judge=judge)


def _compare(
    subject: Subject, *, every: int, length: int, pairs: int, warmup: int, advance: Callable[[], None]
) -> Pairs:
    without, watched = _rounds(subject, 0, length), _rounds(subject, every, length)
    found = interleave(without[1], watched[1], pairs=pairs, warmup=warmup, seed=0, advance=advance)
    seen = [policy.spatial_forcing.health().step for policy, _ in (without, watched)]
    # A measurement is read by the step after it: what was measured last belongs to the last round.
    if seen != [None, length * (pairs + warmup - 1)]:
        raise RuntimeError(f"last measured at steps {seen}, so this compared something else")
    return found


def _rounds(subject: Subject, every: int, length: int) -> tuple[Any, Callable[[], None]]:
    policy = SpatialForcing.wrap(subject.copy(), _GEOMETRY, cameras=subject.cameras, health={"every": every})
    step = training_step(policy, subject.batch)

    def round_of_steps() -> None:
        for _ in range(length):
            step()

    return policy, round_of_steps


def _per_step(ratio: Ratio) -> Ratio:
    return Ratio(*((value - 1) / _EVERY for value in (ratio.median, ratio.low, ratio.high)))


def _percent(share: Ratio) -> str:
    return f"{share.median:.2%} [{share.low:.2%}, {share.high:.2%}]"
