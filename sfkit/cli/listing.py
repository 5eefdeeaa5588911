"""Listings of the installed components, for the terminal and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from rich.table import Table

from sfkit.cli.console import plain_console, titled
from sfkit.errors import PluginError
from sfkit.registry.registry import Entry, Kind, Registry

if TYPE_CHECKING:
    from sfkit.presets import Preset

_JSON_FIELDS = ("kind", "name", "distribution", "summary", "license")


def plugins_json(registry: Registry) -> str:
    """All registered components and all broken plugins, as JSON."""
    entries = [{field: getattr(entry, field) for field in _JSON_FIELDS} for entry in _sorted(registry.entries)]
    broken = [
        {"distribution": plugin.distribution, "entry_point": plugin.entry_point, "error": str(plugin)}
        for plugin in registry.broken
    ]
    return json.dumps({"entries": entries, "broken": broken}, indent=2)


def print_plugins(registry: Registry) -> None:
    """Print a table of all registered components; broken plugins stand below it."""
    rows = ((entry.distribution, entry.kind, entry.form, entry.summary) for entry in _sorted(registry.entries))
    _print_table(("distribution", "kind", "name", "summary"), rows)
    for plugin in registry.broken:
        plain_console().print(titled("broken:", f" {plugin}", "bold red"), highlight=False, soft_wrap=True)


def print_teachers(registry: Registry) -> None:
    """Print a table of the teachers."""
    rows = ((entry.form, entry.license, entry.distribution, entry.summary) for entry in registry.of_kind("teacher"))
    _print_table(("name", "license", "from", "summary"), rows)


def print_teacher(entry: Entry) -> None:
    """Print one teacher with its options.

    Raises:
        PluginError: The teacher cannot be imported, or has no ``Options`` class.
    """
    from sfkit.config import Options  # pydantic, which the other listings do without

    options = getattr(entry.load(), "Options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f"Teacher {entry.name!r} of {entry.distribution} has no Options class.")
    plain_console().print(titled(entry.form, f" ({entry.distribution}, license {entry.license}): {entry.summary}"))
    if not options.model_fields:
        plain_console().print("It has no options.")
        return
    rows = (
        (name, "required" if field.is_required() else repr(field.default), field.description or "")
        for name, field in options.model_fields.items()
    )
    _print_table(("option", "default", "meaning"), rows)


def print_presets(registry: Registry) -> None:
    """Print a table of the presets."""
    rows = ((entry.name, entry.distribution, entry.summary) for entry in registry.of_kind("preset"))
    _print_table(("name", "from", "summary"), rows)


def print_preset(entry: Entry) -> None:
    """Print one preset: its arguments, and how it differs from the paper and from the released code.

    Raises:
        PluginError: The preset cannot be imported.
    """
    preset: Preset = entry.load()
    console = plain_console(highlight=False)
    console.print(titled(preset.name, f" ({entry.distribution}): {entry.summary}. Source: {preset.source}"))
    rows = [
        (f"{name}, policies of {blocks} blocks" if blocks else name, _shortened(value))
        for blocks, arguments in [(0, preset.arguments), *preset.by_blocks.items()]
        for name, value in arguments.items()
    ]
    _print_table(("argument", "value"), rows, highlight=False)
    if preset.teacher_hint:
        console.print(f"Give a teacher. {preset.teacher_hint}")
    notes = {
        "As released:": preset.released,
        "Where the paper says something else:": preset.paper,
        "Not reproduced:": preset.missing,
    }
    for title, lines in notes.items():
        if lines:
            console.print("\n", titled(title), "\n", "\n".join(f"- {line}" for line in lines), sep="")


def print_policies(registry: Registry) -> None:
    """Print a table of the policies with an adapter; those without stand below it."""
    rows = (
        (entry.name, entry.distribution, entry.aligned or entry.summary, entry.trains, entry.verified)
        for entry in _sorted(registry.of_kind("policy"))
    )
    _print_table(("policy", "from", "aligned", "trained by default", "verified on"), rows)
    for entry in _sorted(registry.unsupported()):
        plain_console().print(titled(entry.name, f" ({entry.distribution}): no adapter: {entry.reason}"))


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    kinds = get_args(Kind)
    return sorted(entries, key=lambda entry: (entry.distribution, kinds.index(entry.kind), entry.name))


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, highlight: bool = True) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    plain_console(highlight=highlight).print(table)


def _shortened(value: object) -> str:
    """The shortest readable form of an argument of a preset."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shortened(item)}" for key, item in value.items())
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return f"{value[0]}({_shortened(value[1])})" if value[1] else str(value[0])
    if isinstance(value, tuple):
        return "; ".join(map(_shortened, value))
    return str(value)
