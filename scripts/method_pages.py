"""Renew what pages of the documentation copy from the code: options, lists of names, facts of presets, policies.

    .venv/bin/python scripts/method_pages.py

Each such part stands between ``<!-- from the code: WHAT -->`` and ``<!-- end -->``; a test fails where one is old.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sfkit.registry.registry import CORE, Entry, Registry, default_registry

DOCS = Path(__file__).parents[1] / "docs"
#: Kinds of methods that have a page each, and the folder of those pages. Of teachers, those that the core brings.
FOLDERS = {
    "objective": "objectives",
    "projector": "projectors",
    "transform": "transforms",
    "schedule": "schedules",
    "preset": "presets",
    "teacher": "teachers",
}
_PART = re.compile(r"(<!-- from the code: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods() -> list[Entry]:
    """Everything that must have a page."""
    registry = default_registry()
    entries = [entry for kind in FOLDERS for entry in registry.of_kind(kind)]  # type: ignore[arg-type]
    return [entry for entry in entries if entry.kind != "teacher" or entry.distribution == CORE]


def page_of(entry: Entry) -> Path:
    """The page of a method."""
    return DOCS / FOLDERS[entry.kind] / f"{entry.name}.md"


def renewed(page: Path) -> str:
    """The text of a page, with its copied parts made anew."""
    text = page.read_text()
    return _PART.sub(lambda found: f"{found[1]}\n{_part(found[2], page)}\n\n{found[3]}", text)


def _part(what: str, page: Path) -> str:
    if what == "policies":
        return support_tables(default_registry())
    if what.startswith("all "):
        return _names(what.removeprefix("all ").removesuffix("s"))
    entry = next(entry for entry in methods() if page_of(entry) == page)
    return _preset(entry.load()) if entry.kind == "preset" else _options(entry)


def support_tables(registry: Registry) -> str:
    """Two tables: policies with an adapter, then those without."""
    rows = [
        (f"`{entry.name}`", f"`{entry.distribution}`", entry.aligned or entry.summary, entry.trains or "not known",
         entry.verified or "not said")
        for entry in _by_distribution(registry.of_kind("policy"))
    ]  # fmt: skip
    without = [
        (f"`{entry.name}`", f"`{entry.distribution}`", entry.reason)
        for entry in _by_distribution(registry.unsupported())
    ]
    return (
        _table(("policy", "from", "aligned", "trained by default", "verified on"), rows)
        + "\n\n"
        + _table(("policy", "from", "why there is no adapter"), without)
    )


def _by_distribution(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.distribution, entry.name))


def _names(kind: str) -> str:
    rows = [
        (f"[`{entry.form}`]({FOLDERS[kind]}/{entry.name}.md)", entry.summary)
        for entry in methods()
        if entry.kind == kind
    ]
    return _table(("name", "what it is"), rows)


def _options(entry: Entry) -> str:
    fields = entry.load().Options.model_fields
    if not fields:
        return "None."
    rows = [
        (f"`{name}`", "required" if field.is_required() else f"`{_plain(field.default)}`", field.description or "")
        for name, field in fields.items()
    ]
    return _table(("option", "default", "meaning"), rows)


def _preset(preset: Any) -> str:
    rows = [(f"`{name}`", _said(value)) for name, value in preset.arguments.items()]
    rows += [
        (f"`{name}` for {blocks} blocks", _said(value))
        for blocks, more in preset.by_blocks.items()
        for name, value in more.items()
    ]
    parts = [_table(("argument", "value"), rows)]
    for title, facts in (
        ("Released behavior", preset.released),
        ("Where the paper differs", preset.paper or ("Nothing is known.",)),
        ("Not reproduced", preset.missing),
    ):
        parts.append(f"## {title}\n\n" + "\n".join(f"- {fact}" for fact in facts))
    return "\n\n".join(parts)


def _said(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return "<br>".join(f"`{_plain(pair)}`" for pair in value)
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """As in Python, with lists in the place of tuples but for a name with its options."""
    if isinstance(value, tuple):
        named = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)
        inner = ", ".join(map(_plain, value))
        return f"({inner})" if named else f"[{inner}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for each in sorted(DOCS.glob("**/*.md")):
        new = renewed(each)
        if new != each.read_text():
            each.write_text(new)
            sys.stdout.write(f"renewed {each.relative_to(DOCS)}\n")
