"""What a mutant is, how its edits are applied to a text, and which faults and tests there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Faults of the catalogue that this part of the library must stand guard against.
REQUIRED = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
    *(21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 39, 40),
    *(41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55),
)

_NUMBERED = re.compile(r"^def (test_fault_(\d\d(?:_(?:and_)?\d\d)*)(?:_\w*)?)\(", re.MULTILINE)


class StaleMutantError(Exception):
    """An edit no longer applies, because the source has changed."""


@dataclass(frozen=True)
class Edit:
    """A replacement in one file, whose old text must be there exactly once."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """The text of the file with the edit made.

        Raises:
            StaleMutantError: The old text is not there exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise StaleMutantError(f"{self.file} holds this {count} times instead of once:\n{self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One protection, taken out of the real source, and the tests that must notice.

    Attributes:
        fault: Number in the catalogue of silent faults.
        what: What the source does wrong with the edit.
        file: Where the edit is made, from the root of the repository.
        old: Text that is there exactly once.
        new: What replaces it.
        tests: ``file::function`` or ``file::function[case]``. Each must fail, in one of its cases at least.
        also: Further edits, where one protection stands behind another.
        ends_in: Errors, beside a failed assertion, that are a right way for these tests to fail.
        says: Text that the report of each failure must contain.
    """

    fault: int
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[Edit, ...] = ()
    ends_in: tuple[str, ...] = ()
    says: str = ""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits."""
        return (Edit(self.file, self.old, self.new), *self.also)

    def apply(self, root: Path) -> None:
        """Make the edits in the sources under ``root``.

        Raises:
            StaleMutantError: One of them no longer applies.
        """
        for edit in self.edits:
            path = root / edit.file
            if not path.is_file():
                raise StaleMutantError(f"{edit.file} does not exist.")
            path.write_text(edit.apply(path.read_text(encoding="utf-8")), encoding="utf-8")


def function_of(test: str) -> str:
    """``file::function`` of a test, without the case."""
    return test.partition("[")[0]


def numbers_of(test: str) -> tuple[int, ...]:
    """The faults whose numbers the name of a test bears."""
    found = _NUMBERED.search(f"def {function_of(test).rpartition('::')[2]}(")
    return tuple(int(number) for number in re.findall(r"\d\d", found[2])) if found else ()


def numbered_tests(root: Path) -> Iterator[str]:
    """``file::function`` of every test that bears a number, in the core and the plugins."""
    for path in sorted([*root.glob("tests/**/test_*.py"), *root.glob("plugins/*/tests/**/test_*.py")]):
        for found in _NUMBERED.finditer(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root).as_posix()}::{found[1]}"


def in_file(file: str, names: Iterable[str]) -> tuple[str, ...]:
    """``file::name`` for each name."""
    return tuple(f"{file}::{name}" for name in names)
