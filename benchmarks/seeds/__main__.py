"""Train and measure arms over seeds: one row for each (seed, arm) in a csv file, written as runs finish.

What is in the file already is not run again, so that the study can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from sfkit_demo import RECORDING, STUDY
from sfkit_demo.arms import run_jobs
from sfkit_demo.run import Progress
from sfkit_demo.settings import Arm, Job, Settings
from sfkit_demo.study import append_result, read_rows

from benchmarks.seeds.shuffled import ShuffledGeometry
from sfkit.errors import SfkitError

#: What each arm is wrapped with. The variants of the geometry teacher are there to choose its defaults by.
ARMS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "geometry": lambda: "geometry",
    "shuffled": ShuffledGeometry,
    "geometry-centered": lambda: ("geometry", {"position_mean": True}),
    "geometry-world": lambda: ("geometry", {"frame": "world"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, and say how it goes."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    done = {(int(row["seed"]), row["arm"], int(row["steps"])) for row in read_rows(options.out)}
    jobs = [
        Job(Arm(arm, ARMS[arm](), untrained=arm == "plain"), _settings(options, seed))
        for seed in options.seeds
        for arm in options.arms
        if (seed, arm, options.steps) not in done
    ]
    console.print(f"{len(jobs)} runs to do, {len(options.seeds) * len(options.arms) - len(jobs)} done already")
    start = time.monotonic()
    try:
        for count, result in enumerate(run_jobs(jobs, options.jobs, _progress_printer(console)), start=1):
            append_result(options.out, result, _settings(options, result.seed))
            minutes = (time.monotonic() - start) / 60
            console.print(
                f"[{count}/{len(jobs)}, {minutes:.0f} min] seed {result.seed} {result.arm}: "
                f"flow loss {result.metrics.flow_loss:.3f}, object {result.metrics.object_cm:.2f} cm"
            )
    except SfkitError as error:
        console.print(f"[bold red]error:[/] {error}", markup=True, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["plain", "geometry", "shuffled"])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--data", type=Path, default=RECORDING)
    parser.add_argument("--out", type=Path, default=STUDY)
    return parser


def _settings(options: argparse.Namespace, seed: int) -> Settings:
    return Settings(data=options.data, steps=options.steps, seed=seed)


def _progress_printer(console: Console) -> Callable[[Progress], None]:
    """Print one line for every hundred steps, as suits a log file."""

    def print_progress(progress: Progress) -> None:
        if progress.phase == "training" and progress.step % 100 == 0:
            console.print(f"  {progress.arm}: step {progress.step}, action loss {progress.loss:.3f}")

    return print_progress


if __name__ == "__main__":
    sys.exit(main())
