"""What training with the geometry teacher costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.policies import Subject, demo_smolvla, wide_smolvla
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, compare_steps, one_thread, row

_LIMIT = 1.10
#: Statistics taken from the first batch: what every step after the first 32 costs.
_SETTLED = ("geometry", {"calibration_steps": 0})
#: Statistics never done: what the first 32 steps cost.
_GATHERING = ("geometry", {"calibration_steps": 1_000_000})


def steps(*, quick: bool) -> int:
    return 2 * 3 + 2 if quick else 2 * 40 + 10


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    wide, demo = wide_smolvla(quick=quick), demo_smolvla(2 if quick else 16)

    def measure(subject: Subject, teacher: Any, what: str, runs: int, warmup: int, **judged: Any) -> Row:
        pairs = runs - warmup
        found = compare_steps(subject, teacher, pairs=pairs, warmup=warmup, advance=advance)
        return row(what, found, **judged)

    rows = [
        measure(
            wide, _SETTLED, "SmolVLA-450M's widths", 2 if quick else 10, 1,
            target=f"at most {_LIMIT:.2f}", judge=at_most(_LIMIT),
        )
    ]  # fmt: skip
    with one_thread():
        runs, warmup = (3, 1) if quick else (40, 4)
        rows.append(measure(demo, _SETTLED, "demonstration", runs, warmup))
        rows.append(measure(demo, _GATHERING, "demonstration, in its first 32 steps", runs, warmup))
    return Report(
        name="geometry",
        title="Training step with the geometry teacher over plain",
        rows=rows,
        conditions={
            "SmolVLA-450M's widths": {**wide.about(), "depth maps": "128 px", "threads": torch.get_num_threads()},
            "demonstration": {**demo.about(), "threads": 1},
            "pairs": {each.what: each.data["pairs"] for each in rows},
        },
    )
