"""The page of silent faults: its numbers are those of the tests, and what it quotes is what sfkit says."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "silent-faults.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside the tests of an installed wheel")

_NUMBERED = re.compile(r"^\s*def test_fault_(\d\d(?:_(?:and_)?\d\d)*)_", re.MULTILINE)
_QUOTES = re.compile(r"`(\w+(?:Error|Warning))`: (\*[^*]+\*(?:; \*[^*]+\*)*)")


@dataclass(frozen=True)
class Fault:
    """A row of the page."""

    number: int
    fault: str
    harm: str
    answer: str

    @property
    def guarded(self) -> bool:
        return not self.answer.startswith("Not guarded yet")

    @property
    def quotes(self) -> list[tuple[str, str]]:
        """Class of an error or warning, and what it says."""
        return [
            (found[1], quote)
            for found in _QUOTES.finditer(self.answer)
            for quote in re.findall(r"\*([^*]+)\*", found[2])
        ]


def rows(text: str) -> list[Fault]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0].isdigit():
            assert len(cells) == 4, line
            found.append(Fault(int(cells[0]), *cells[1:]))
    return found


def numbers(text: str) -> set[int]:
    """Numbers that the tests of a file bear."""
    return {int(number) for found in _NUMBERED.findall(text) for number in re.findall(r"\d\d", found)}


@cache
def said() -> dict[str, list[str]]:
    """All texts of the sources by the error that they are given to; under the empty name all there are."""
    found: dict[str, list[str]] = {"": []}
    for file in (*ROOT.glob("sfkit/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found[""] += texts(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = {"broken": "ComponentError"}.get(node.func.id, node.func.id)  # the function that makes the error
                found.setdefault(name, []).extend(texts(node))
    return found


def texts(tree: ast.AST) -> list[str]:
    """Each string under a node, with ``{}`` where an f-string has a value."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def is_said(kind: str, quote: str) -> bool:
    """Whether a text is in the sources: in the call that makes such an error, or for a warning anywhere."""
    return any(quote in text for text in said().get("" if kind.endswith("Warning") else kind, ()))


reads_the_sources = pytest.mark.skipif(sys.version_info < (3, 12), reason="the plugins are written for Python 3.12")
FAULTS = rows(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else []


@pytest.fixture(scope="module")
def borne() -> set[int]:
    files = (*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py"))
    return set().union(*(numbers(file.read_text(encoding="utf-8")) for file in files))


def test_every_number_is_on_the_page_once() -> None:
    assert sorted(fault.number for fault in FAULTS) == list(range(1, len(FAULTS) + 1))


def test_every_number_that_a_test_bears_is_on_the_page(borne: set[int]) -> None:
    assert borne <= {fault.number for fault in FAULTS}


def test_every_guarded_fault_has_a_test(borne: set[int]) -> None:
    assert {fault.number for fault in FAULTS if fault.guarded} <= borne


def test_what_is_not_guarded_has_no_test(borne: set[int]) -> None:
    assert not {fault.number for fault in FAULTS if not fault.guarded} & borne


@reads_the_sources
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number:02}")
def test_what_a_row_quotes_is_what_sfkit_says(fault: Fault) -> None:
    assert [quote for quote in fault.quotes if not is_said(*quote)] == []
    assert len(re.findall(r"\*[^*]+\*", fault.answer)) == len(fault.quotes), "each quote stands behind its error"


def test_rows_and_numbers_are_read() -> None:
    (row,) = rows("| no. | a |\n|---|---|\n| 7 | f | h | It is so. `TapError`: *one*; *two*; `WrapError`: *three* |\n")
    assert row.quotes == [("TapError", "one"), ("TapError", "two"), ("WrapError", "three")]
    assert row.guarded
    assert numbers("def test_fault_03_and_04_x():\n    def test_fault_16_20_25_y():\ndef test_fault_4_z():") == {
        *(3, 4, 16, 20, 25)
    }


@reads_the_sources
def test_a_quote_of_another_error_is_noticed() -> None:
    assert is_said("TapError", "did not fire during forward")
    assert not is_said("WrapError", "did not fire during forward")
    assert not is_said("SfkitWarning", "did not fire backwards")
