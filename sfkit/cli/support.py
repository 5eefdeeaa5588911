"""The support table: which policies can be aligned, as their plugins have registered them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from sfkit.cli.console import plain_console, titled
from sfkit.registry.registry import Entry, Registry

_COLUMNS = ("policy", "from", "aligned", "trained by default", "verified on")
_WITHOUT = ("policy", "from", "why there is no adapter")


def support_tables(registry: Registry) -> str:
    """Two tables in Markdown: policies with an adapter, then those without."""
    tables = [_markdown(_COLUMNS, map(_row, _sorted(registry.of_kind("policy"))))]
    without = _sorted(registry.unsupported())
    if without:
        tables.append(_markdown(_WITHOUT, ((f"`{e.name}`", f"`{e.distribution}`", e.reason) for e in without)))
    return "\n".join(tables)


def print_policies(registry: Registry) -> None:
    """The same on the terminal."""
    console = plain_console()
    table = _table(*_COLUMNS)
    for entry in _sorted(registry.of_kind("policy")):
        table.add_row(entry.name, entry.distribution, entry.aligned or entry.summary, entry.trains, entry.verified)
    console.print(table)
    for entry in _sorted(registry.unsupported()):
        console.print(titled(entry.name, f" ({entry.distribution}): no adapter: {entry.reason}"))


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        f"`{entry.name}`",
        f"`{entry.distribution}`",
        entry.aligned or entry.summary,
        entry.trains or "not known",
        entry.verified or "not said",
    )


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.distribution, entry.name))


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
