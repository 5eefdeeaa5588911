"""What the health monitor costs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Pairs, Ratio, interleave
from benchmarks.policies import Subject, demo_smolvla, wide_smolvla
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, one_thread, row, training_step
from sfkit import SpatialForcing
from sfkit.config import HealthOptions

_LIMIT = 0.01
_EVERY = HealthOptions().every
_NEVER_AGAIN = 10**6
_GEOMETRY = ("geometry", {"calibration_steps": 0})


def steps(*, quick: bool) -> int:
    return 4 + 4 + 4 if quick else (30 + 6) + (8 + 4) + (240 + 20)


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    demo, wide = demo_smolvla(2 if quick else 16), wide_smolvla(quick=quick)
    rows: list[Row] = []
    with one_thread():
        for what, subject, pairs, warmup in (
            ("demonstration", demo, *((2, 1) if quick else (30, 3))),
            ("SmolVLA-450M's widths", wide, *((2, 1) if quick else (8, 2))),
        ):
            rows += _of_a_measured_step(what, subject, pairs, warmup, advance)
        rows.append(_of_a_step_between(demo, *((2, 1) if quick else (240, 10)), advance))
    return Report(
        name="health",
        title=f"Training step with the health monitor, over one without; it measures one step of {_EVERY}",
        rows=rows,
        conditions={
            "demonstration": demo.about(),
            "SmolVLA-450M's widths": wide.about(),
            "threads": 1,
            "copies change roles half way": "yes",
        },
    )


def _of_a_measured_step(
    what: str, subject: Subject, pairs: int, warmup: int, advance: Callable[[], None]
) -> tuple[Row, Row]:
    """What a measured step costs over one that is not, and so how much it is of all steps."""
    found = _compare(subject, every=1, pairs=pairs, warmup=warmup, advance=advance)
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


def _of_a_step_between(subject: Subject, pairs: int, warmup: int, advance: Callable[[], None]) -> Row:
    """What the monitor costs where it measures nothing."""
    found = _compare(subject, every=_NEVER_AGAIN, pairs=pairs, warmup=warmup, advance=advance)
    target, judge = f"at most {1 + _LIMIT:.2f}", at_most(1 + _LIMIT)
    return row("demonstration: a step between measurements over one without", found, target=target, judge=judge)


def _compare(subject: Subject, *, every: int, pairs: int, warmup: int, advance: Callable[[], None]) -> Pairs:
    # Two objects lie at different addresses, which alone can make one faster: they change roles half way.
    copies, found = [subject.copy(), subject.copy()], Pairs()
    for index in range(2):
        without, watched = copies if index == 0 else copies[::-1]
        for policy, often in ((without, 0), (watched, every)):
            SpatialForcing.wrap(policy, _GEOMETRY, cameras=subject.cameras, health={"every": often})
        interleave(
            training_step(without, subject.batch), training_step(watched, subject.batch),
            pairs=pairs // 2, warmup=warmup, seed=index, advance=advance, into=found,
        )  # fmt: skip
        seen = [policy.spatial_forcing.health().step for policy in (without, watched)]
        # The first step is always measured; a measurement is read by the step after it.
        if seen != [None, 0 if every > pairs else pairs // 2 + warmup - 1]:
            raise RuntimeError(f"last measured at steps {seen}, so this compared something else")
        for policy in copies:
            SpatialForcing.unwrap(policy)
    return found


def _per_step(ratio: Ratio) -> Ratio:
    return Ratio(*((value - 1) / _EVERY for value in (ratio.median, ratio.low, ratio.high)))


def _percent(share: Ratio) -> str:
    return f"{share.median:.2%} [{share.low:.2%}, {share.high:.2%}]"
