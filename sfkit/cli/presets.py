"""Listings of presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from sfkit.cli.console import plain_console, titled
from sfkit.cli.listing import table_of
from sfkit.presets import Preset
from sfkit.registry.registry import Entry, Registry


def print_presets(registry: Registry) -> None:
    """A table of the presets."""
    table = table_of("name", "from", "summary")
    for entry in registry.of_kind("preset"):
        table.add_row(entry.name, entry.distribution, entry.summary)
    plain_console().print(table)


def print_preset(entry: Entry) -> None:
    """One preset: its arguments, and what is known about them.

    Raises:
        PluginError: It cannot be imported.
    """
    preset: Preset = entry.load()
    console = plain_console(highlight=False)
    console.print(titled(preset.name, f" ({entry.distribution}): {entry.summary}. Source: {preset.source}"))
    table = table_of("argument", "value")
    for blocks, arguments in [(0, preset.arguments), *preset.by_blocks.items()]:
        where = f", policies of {blocks} blocks" if blocks else ""
        for name, value in arguments.items():
            table.add_row(name + where, _told(value))
    console.print(table)
    if preset.teacher_hint:
        console.print(f"Give a teacher. {preset.teacher_hint}")
    _print_list(console, "As released:", preset.released)
    _print_list(console, "Where the paper says something else:", preset.paper)
    _print_list(console, "Not reproduced:", preset.missing)


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print()
        console.print(titled(title))
        for line in lines:
            console.print(f"- {line}")


def _told(value: Any) -> str:
    """A value as short as it can be read."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_told(item)}" for key, item in value.items())
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return f"{value[0]}({_told(value[1])})" if value[1] else str(value[0])
    if isinstance(value, tuple):
        return "; ".join(map(_told, value))
    return str(value)
