"""The result of a benchmark, and its output as a table in the terminal, JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

_COLUMNS = ("what", "measured", "CPU time", "target", "")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured.
        measured: The figure, with its interval where it has one; times are wall times.
        target: What it has to be, in words; empty where it is only reported.
        verdict: ``met``, ``missed``, ``not shown`` (the interval is too wide to tell), or empty.
        cpu: The same figure by processor time, which other programs on the machine disturb less.
        data: The bare numbers.
    """

    what: str
    measured: str
    target: str = ""
    verdict: str = ""
    cpu: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, ...]:
        return self.what, self.measured, self.cpu, self.target, self.verdict


@dataclass(frozen=True)
class Report:
    """All that one benchmark found, and under which conditions."""

    name: str
    title: str
    rows: Sequence[Row]
    conditions: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write ``NAME.json``, and ``README.md`` anew from every JSON file that is there."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        (folder / "README.md").write_text("\n".join(["# Benchmarks\n", *map(_markdown, found)]))

    def table(self) -> Table:
        table = Table(*_COLUMNS, title=self.title, title_justify="left")
        for row in self.rows:
            color = {"met": "green", "missed": "red", "not shown": "yellow"}.get(row.verdict, "default")
            table.add_row(*row.cells[:-1], f"[{color}]{row.verdict}[/]")
        return table


def machine(load: float) -> dict[str, Any]:
    """What the machine and its software were.

    Args:
        load: Its load average before anything was measured.
    """
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load before": round(load, 2),
        **{name: version(name) for name in ("torch", "transformers", "lerobot", "spatial-forcing")},
    }


def _markdown(report: dict[str, Any]) -> str:
    rows = [Row(**row) for row in report["rows"]]
    lines = [f"## {report['title']}", "", _line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(row.cells) for row in rows]
    conditions = "; ".join(f"{key}: {_plain(value)}" for key, value in report["conditions"].items())
    return "\n".join([*lines, "", f"Conditions: {conditions}.", ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
