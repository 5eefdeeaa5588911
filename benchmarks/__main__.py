"""Run the benchmarks, print their results, and save them."""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    alignment,
    disabled,
    geometry,
    health,
    imports,
    lerobot_loop,
    memory,
    openpi,
    pairs_memory,
    standins,
    vggt,
    vggt_gpu,
    vggt_memory,
)  # fmt: skip
from benchmarks.report import Report, machine
from benchmarks.timed import one_thread


class Benchmark(Protocol):
    """A module, or a value, that measures something."""

    def steps(self, *, quick: bool) -> int:
        """How often ``run`` will call ``advance``."""

    def run(self, *, quick: bool, advance: Callable[[], None]) -> Report:
        """Measure; ``quick`` only tries whether everything works."""


BENCHMARKS: dict[str, Benchmark] = {
    "disabled": disabled, "geometry": geometry, "alignment": alignment, "memory": memory,
    "pairs-memory": pairs_memory, "health": health, "imports": imports,
    "openpi": openpi, "standins": standins, "lerobot-train": lerobot_loop, "vggt": vggt.REDUCED,
    "vggt-memory": vggt_memory.REDUCED, "vggt-gpu": vggt_gpu,
}  # fmt: skip
#: They take long and need 10 GB of memory: only with ``--full``.
FULL: dict[str, Benchmark] = {"vggt-memory-full": vggt_memory.AT_FULL_SIZE, "vggt-full": vggt.AT_FULL_SIZE}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where a target was missed."""
    options = _parser().parse_args(arguments)
    out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    console = Console()
    load = os.getloadavg()[0]
    if load > 1 and not options.quick:
        console.print(f"[yellow]The load average is {load:.1f} already: intervals will be wide.[/]")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    offered = FULL if options.full else BENCHMARKS
    names = [name for name in offered if name in (options.only or offered)]
    with one_thread() if options.quick else nullcontext():
        reports = _run_all(names, options.quick, load, out, console)
    for report in reports:
        console.print(report.table())
    console.print(f"Written to {out}. Ratios are medians of pairs [95 % interval].")
    return int(any(row.verdict == "missed" for report in reports for row in report.rows))


def _run_all(names: Sequence[str], quick: bool, load: float, out: Path, console: Console) -> list[Report]:
    """Run them one by one; what one found is kept even where a later one is stopped."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    reports: list[Report] = []
    with Progress(*columns, console=console) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        for name in names:
            benchmark = {**BENCHMARKS, **FULL}[name]
            task = progress.add_task(name, total=benchmark.steps(quick=quick))
            found = benchmark.run(quick=quick, advance=functools.partial(progress.advance, task))
            reports.append(_with_conditions(found, quick, load))
            reports[-1].write(out)
            gc.collect()
    return reports


def _with_conditions(report: Report, quick: bool, load: float) -> Report:
    """The report with what holds for all; a quick run judges no time."""
    rows = [replace(row, verdict="") if quick and row.cpu else row for row in report.rows]
    conditions = {**report.conditions, "quick": "yes"} if quick else report.conditions
    return replace(report, rows=rows, conditions={**conditions, **machine(load)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*BENCHMARKS, *FULL], metavar="NAME",
                        help=f"some of {', '.join(BENCHMARKS)}, with --full of {', '.join(FULL)}")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="those at full size instead: 20 minutes, 10 GB of memory")
    parser.add_argument("--quick", action="store_true", help="a smoke run, whose times mean nothing")
    parser.add_argument("--out", type=Path, help="folder for results (default: benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
