"""Run both arms, print the table, and write the report."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from sfkit_demo.arms import ArmError, run_jobs
from sfkit_demo.comparison import Comparison
from sfkit_demo.live import Live
from sfkit_demo.report import write_report
from sfkit_demo.run import ArmResult
from sfkit_demo.settings import Arm, Job, Settings
from sfkit_demo.study import read_results
from sfkit_demo.table import print_table
from sfkit_demo.wording import settings_line

PLAIN, ALIGNED = "plain", "aligned"


def compare(settings: Settings, out: Path, jobs: int, study: Path) -> Path:
    """Run the demonstration.

    Args:
        settings: Settings of both arms; the aligned arm trains with ``settings.teacher``.
        out: Folder for the report.
        jobs: Number of processes.
        study: File with the results of the seed study; may be absent.

    Returns:
        Path of the report.
    """
    console = Console(markup=False, emoji=False)  # rich would read brackets in a teacher's name as markup
    precomputed = read_results(study)
    console.print(settings_line(settings), highlight=False)
    start = time.monotonic()
    arms = [Arm(PLAIN, untrained=True, images=True), Arm(ALIGNED, settings.teacher, images=True)]
    with Live([arm.name for arm in arms], settings.steps, console) as live:
        results: dict[str, ArmResult] = {}
        for result in run_jobs([Job(arm, settings) for arm in arms], jobs, live.update):
            results[result.arm] = result
            live.done(result.arm)
    plain, aligned = results[PLAIN], results[ALIGNED]
    if plain.curves.random_state != aligned.curves.random_state:
        raise ArmError(
            "The two arms drew different random numbers, so they cannot be compared.",
            "A teacher or projector must not use torch's global generator: this is a bug of the teacher's plugin.",
        )
    comparison = Comparison(settings, plain, aligned, tuple(precomputed), time.monotonic() - start)
    print_table(comparison, console)
    report = write_report(comparison, out)
    console.print(f"Report: {report} (open it in a browser)", highlight=False, soft_wrap=True)
    return report
