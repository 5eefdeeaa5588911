"""Every method has a page with its formula, source and when to use it; what pages copy from the code is true."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from sfkit.registry.registry import Entry, Registry

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "method_pages.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the docs are not beside the tests of an installed wheel")
PAGES: dict[str, Any] = runpy.run_path(str(SCRIPT), run_name="pages") if SCRIPT.is_file() else {}
METHODS: list[Entry] = PAGES["methods"]() if PAGES else []

SECTIONS = {
    "preset": ("Formula", "When to use it", "Source", "What it stands for", "Released behavior",
               "Where the paper differs", "Not reproduced"),
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def lacks(entry: Entry) -> list[str]:
    """What is missing of the page of a method."""
    page: Path = PAGES["page_of"](entry)
    if not page.is_file():
        return ["the page"]
    text = page.read_text()
    found = sections(text)
    missing = [name for name in SECTIONS.get(entry.kind, ("Formula", "Options", "When to use it", "Source"))
               if len(found.get(name, "")) < 3]  # fmt: skip
    if not text.startswith(f"# {entry.name}\n"):
        missing.append("the title")
    if not re.match(r"    \S", "    " + found.get("Formula", "")) or "from the code" not in text:
        missing.append("a formula, or what the code says")
    if not re.search(r"https://|library's|needs none|there is none|\b(19|20)\d\d\b", found.get("Source", "")):
        missing.append("a source that can be found")
    return missing


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_method_has_its_page(entry: Entry) -> None:
    assert lacks(entry) == []
    page = PAGES["page_of"](entry).relative_to(ROOT / "docs").as_posix()
    assert f"- {page}\n" in (ROOT / "mkdocs.yml").read_text()


def test_all_kinds_of_methods_are_looked_at() -> None:
    assert {entry.kind for entry in METHODS} == set(PAGES["FOLDERS"])
    assert len(METHODS) >= 35


def test_a_method_without_a_page_is_noticed() -> None:
    new = Entry("objective", "hinge", "sfkit.objectives.distances:MSEObjective", "sfkit")
    assert lacks(new) == ["the page"]


def test_no_page_is_of_a_method_that_is_gone() -> None:
    known = {PAGES["page_of"](entry) for entry in METHODS}
    folders = (ROOT / "docs" / folder for folder in PAGES["FOLDERS"].values())
    assert [page for folder in folders for page in folder.glob("*.md") if page not in known] == []


def test_what_pages_copy_from_the_code_is_what_the_code_says() -> None:
    pages = set((ROOT / "docs").glob("**/*.md"))
    if importlib.util.find_spec("sfkit_lerobot") is None:  # whose policies the table lists
        pages.remove(ROOT / "docs" / "policies.md")
    old = [page.name for page in sorted(pages) if PAGES["renewed"](page) != page.read_text()]
    assert old == [], "run .venv/bin/python scripts/method_pages.py"


def test_the_support_tables_list_each_policy_and_each_reason() -> None:
    registry = Registry(
        [
            Entry("policy", "b", "m:B", "two", aligned="tokens", trains="everything", verified="a tiny one"),
            Entry("policy", "a", "m:A", "one", summary="an adapter"),
            Entry("policy", "unfit", None, "two", reason="it has no images"),
        ]
    )
    assert PAGES["support_tables"](registry).splitlines() == [
        "| policy | from | aligned | trained by default | verified on |",
        "| --- | --- | --- | --- | --- |",
        "| `a` | `one` | an adapter | not known | not said |",
        "| `b` | `two` | tokens | everything | a tiny one |",
        "",
        "| policy | from | why there is no adapter |",
        "| --- | --- | --- |",
        "| `unfit` | `two` | it has no images |",
    ]
