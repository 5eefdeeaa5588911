"""A wrapped policy that does not align costs nothing."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Ratio
from benchmarks.policies import demo_smolvla
from benchmarks.report import Report
from benchmarks.timed import compare_steps, one_thread, row

_LIMIT = 1.02
#: A small batch: the shorter the step, the more of it a cost for each call would be.
_BATCH = 4


def steps(*, quick: bool) -> int:
    return 6 if quick else 320


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    rounds, warmup = 2, 1 if quick else 10
    pairs = steps(quick=quick) - rounds * warmup
    subject = demo_smolvla(_BATCH)
    with one_thread():
        found = compare_steps(
            subject, "geometry", pairs=pairs, warmup=warmup, rounds=rounds, disabled=True, advance=advance
        )
    target = f"interval has 1, ends below {_LIMIT}"
    return Report(
        name="disabled",
        title="Training step, wrapped but disabled, over plain",
        rows=[row("demonstration", found, target=target, judge=judge)],
        conditions={"policy": subject.about(), "pairs": pairs, "threads": 1, "copies change roles half way": "yes"},
    )


def judge(ratio: Ratio) -> str:
    """Whether no cost was found, and looked for well enough to have found one of two percent."""
    if ratio.low > 1:
        return "missed"
    return "met" if ratio.high >= 1 and ratio.high < _LIMIT else "not shown"
