"""Proves that the tests stand guard: takes each protection out of the sources, one at a time, and runs its tests.

``python tests/mutations [FAULT ...] [--jobs N]``. It works on copies; the working tree is not touched. It fails when a
mutant survives, no longer applies, or makes its tests fail for another reason than the one they are there for.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutant import Mutant
from operators import StaleMutantError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sources import CORE, Tests, distribution_of
from table import MUTANTS
from trial import Bench, Outcome, Trial

ROOT = Path(__file__).resolve().parents[2]
#: What the tests import, our packages aside: imported once, before the processes are forked.
_HEAVY = (
    *("torch", "torch._dynamo", "torch.distributed", "torch.utils.checkpoint", "torch.optim.swa_utils"),
    *("pydantic", "pluggy", "safetensors.torch", "huggingface_hub", "peft", "accelerate"),
    # What pytest imports itself, or would at its end.
    *("hypothesis", "anyio.pytest_plugin"),
)
#: Imported too where a test belongs to a plugin that needs LeRobot or transformers, and only then: it takes long.
_HEAVIER = (
    *("lerobot.policies.pi0.modeling_pi0", "lerobot.policies.smolvla.modeling_smolvla", "lerobot.transforms"),
    *("lerobot.datasets.lerobot_dataset", "lerobot.processor", "transformers", "torchvision.transforms.v2"),
    "lerobot.scripts.lerobot_train",
)


def main() -> int:
    """Run the trials, print the table; 1 when a protection is not proven."""
    parser = argparse.ArgumentParser(prog="mutations", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("faults", nargs="*", type=int, help="numbers of faults; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="print what pytest said of each mutant not caught")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.faults or mutant.fault in arguments.faults]
    # The folder of this script would offer its own modules to the tests.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    console, start = Console(width=None if sys.stdout.isatty() else 150), time.monotonic()
    for module in _HEAVY + (_HEAVIER if _need_lerobot(chosen) else ()):
        importlib.import_module(module)
    console.print(f"{len(chosen)} mutants, imports took {time.monotonic() - start:.0f} s")
    results: list[tuple[Mutant | None, Outcome]] = []
    for mutant, outcome in _trials(chosen, arguments.jobs):
        results.append((mutant, outcome))
        _print(console, mutant, outcome, verbose=arguments.verbose)

    console.print(_table(results))
    bad = sum(bool(outcome.problem) for _, outcome in results)
    faults = len({mutant.fault for mutant in chosen})
    console.print(
        f"{len(chosen)} mutants of {faults} faults, {bad} not as they must be, {time.monotonic() - start:.0f} s",
        style="red" if bad else "green",
    )
    return 1 if bad or not chosen else 0


def _need_lerobot(mutants: Sequence[Mutant]) -> bool:
    """Whether a test belongs to a plugin that needs LeRobot or transformers."""
    tests, plugins = Tests.of(ROOT), set()
    for test in {test for mutant in mutants for test in mutant.tests}:
        try:
            plugins.add(distribution_of(tests.find(test)))
        except StaleMutantError:  # its trial says so
            continue
    projects = [ROOT / "plugins" / plugin / "pyproject.toml" for plugin in plugins - {CORE}]
    return any(re.search("lerobot|transformers", project.read_text(encoding="utf-8")) for project in projects)


def _trials(mutants: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant | None, Outcome]]:
    """Run the control and each mutant, some at a time; yields them as they end."""
    every = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    waiting: deque[tuple[Mutant | None, Sequence[str]]] = deque([(None, every)])
    waiting.extend((mutant, mutant.tests) for mutant in mutants)
    running: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        bench = Bench(ROOT, Path(temporary))
        # Children then share the pages of what is imported, instead of copying them at the first collection.
        gc.collect()
        gc.freeze()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    mutant, tests = waiting.popleft()
                    running.append(Trial(bench, tests, mutant))
                time.sleep(0.02)
                for trial in list(running):
                    outcome = trial.poll()
                    if outcome is not None:
                        running.remove(trial)
                        shutil.rmtree(trial.folder, ignore_errors=True)
                        yield trial.mutant, outcome
        finally:
            for trial in running:
                trial.kill()


def _print(console: Console, mutant: Mutant | None, outcome: Outcome, *, verbose: bool) -> None:
    what = f"{mutant.fault:2d} {mutant}" if mutant else "   control: nothing changed, all of these tests pass"
    mark = "[red]FAULTY[/]" if outcome.problem else "[green]ok[/]"
    console.print(
        f"  {mark} {escape(what)} ({outcome.seconds:.1f} s) {escape(outcome.problem)}", highlight=False, soft_wrap=True
    )
    if verbose and outcome.detail:
        console.print(outcome.detail, markup=False, highlight=False, soft_wrap=True)


def _table(results: Sequence[tuple[Mutant | None, Outcome]]) -> Table:
    table = Table(title="Each protection taken out, one at a time")
    table.add_column("fault", justify="right")
    table.add_column("taken out", overflow="fold")
    table.add_column("test", overflow="fold")
    table.add_column("result")
    table.add_column("s", justify="right")
    for mutant, outcome in sorted(results, key=lambda result: result[0].fault if result[0] else 0):
        table.add_row(
            str(mutant.fault) if mutant else "",
            escape(str(mutant)) if mutant else "nothing (the control)",
            escape("\n".join(mutant.tests)) if mutant else "all of them",
            escape(outcome.problem) or ("caught" if mutant else "pass"),
            f"{outcome.seconds:.1f}",
            style="red" if outcome.problem else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
