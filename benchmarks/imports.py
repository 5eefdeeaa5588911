"""What starting costs, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.pairs import interleave
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, row

_LIMIT = 1.2
_NOTHING = ("-c", "pass")
_TORCH = ("-c", "import torch")
_HELP = ("-c", "from sfkit.cli import main; main()", "--help")

#: What is started, what it is compared with, and how often.
_COMPARED: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "from sfkit import SpatialForcing, over import torch": (("-c", "from sfkit import SpatialForcing"), _TORCH, 10),
    "sfkit --help, over import torch": (_HELP, _TORCH, 3),
    "import sfkit, over an empty program": (("-c", "import sfkit"), _NOTHING, 20),
}


def steps(*, quick: bool) -> int:
    return sum(_runs(count, quick) + (not quick) for _, _, count in _COMPARED.values())


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    rows: list[Row] = []
    for what, (other, base, count) in _COMPARED.items():
        pairs = _runs(count, quick)
        found = interleave(
            _starter(base), _starter(other), pairs=pairs, warmup=0 if quick else 1, seed=0, advance=advance
        )
        judged = {"target": f"at most {_LIMIT}", "judge": at_most(_LIMIT)} if not rows else {}
        rows.append(row(what, found, **judged))  # type: ignore[arg-type]
    return Report(
        name="imports",
        title="Starting",
        rows=rows,
        conditions={"pairs": {each.what: each.data["pairs"] for each in rows}, "files": "cached after a first run"},
    )


def _runs(count: int, quick: bool) -> int:
    return 1 if quick else count


def _starter(arguments: tuple[str, ...]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
