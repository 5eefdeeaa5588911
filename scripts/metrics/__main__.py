"""Prints how large and how scattered sfkit is, beside its goals.

python scripts/metrics            report
python scripts/metrics --check    fail where a goal is missed by more than its ceiling allows
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Print the table; 1 if a figure is worse than allowed and ``--check`` is given."""
    parser = argparse.ArgumentParser(prog="metrics", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a figure is worse than allowed")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    from figures import figures

    table = Table("figure", "now", "goal", "", caption="Without blanks, comments and docstrings where it says lines.")
    found = figures(ROOT)
    for figure in found:
        limit = "" if figure.limit is None else f"{figure.limit:,}"
        verdict = "" if figure.limit is None else "[red]over[/]" if figure.over else "[green]ok[/]"
        if figure.over and not figure.worse:
            verdict = f"[yellow]until it is met: {figure.ceiling:,}[/]"
        table.add_row(figure.what, f"{figure.value:,}", limit, verdict)
        if figure.over and figure.examples:
            table.add_row(f"[dim]  {', '.join(figure.examples)}[/]", "", "", "")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 1 if given.check and any(figure.worse for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main())
