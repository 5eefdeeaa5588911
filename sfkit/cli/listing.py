"""Listings of what is installed."""

from __future__ import annotations

import json

from rich.table import Table

from sfkit.cli.console import plain_console, titled
from sfkit.errors import PluginError
from sfkit.registry.registry import Entry, Registry

_KINDS = ("teacher", "policy", "objective", "projector", "transform", "schedule", "preset", "parity", "command")


def plugins_json(registry: Registry) -> str:
    """Everything that is registered, and what is broken, as JSON."""
    fields = ("kind", "name", "distribution", "summary", "license")
    entries = [{field: getattr(entry, field) for field in fields} for entry in _sorted(registry)]
    broken = [
        {"distribution": plugin.distribution, "entry_point": plugin.entry_point, "error": str(plugin)}
        for plugin in registry.broken
    ]
    return json.dumps({"entries": entries, "broken": broken}, indent=2)


def print_plugins(registry: Registry) -> None:
    """A table of everything that is registered; what is broken below it."""
    table = table_of("distribution", "kind", "name", "summary")
    for entry in _sorted(registry):
        table.add_row(entry.distribution, entry.kind, entry.form, entry.summary)
    console = plain_console()
    console.print(table)
    for plugin in registry.broken:
        console.print(titled("broken:", f" {plugin}", "bold red"), highlight=False, soft_wrap=True)


def print_teachers(registry: Registry) -> None:
    """A table of the teachers."""
    table = table_of("name", "license", "from", "summary")
    for entry in registry.of_kind("teacher"):
        table.add_row(entry.form, entry.license, entry.distribution, entry.summary)
    plain_console().print(table)


def print_teacher(entry: Entry) -> None:
    """One teacher with its options, read from their definition.

    Raises:
        PluginError: It cannot be imported, or does not say its options.
    """
    options = getattr(entry.load(), "Options", None)
    if not hasattr(options, "model_fields"):
        raise PluginError(f"Teacher {entry.name!r} of {entry.distribution} has no Options class.")
    console = plain_console()
    console.print(titled(entry.form, f" ({entry.distribution}, license {entry.license}): {entry.summary}"))
    table = table_of("option", "default", "meaning")
    for name, field in options.model_fields.items():  # type: ignore[union-attr]
        table.add_row(name, "required" if field.is_required() else repr(field.default), field.description or "")
    console.print(table if options.model_fields else "It has no options.")  # type: ignore[union-attr]


def _sorted(registry: Registry) -> list[Entry]:
    return sorted(registry.entries, key=lambda e: (e.distribution, _KINDS.index(e.kind), e.name))


def table_of(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
