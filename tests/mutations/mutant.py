"""What a mutant is: a function without one of its protections, and the tests that must notice."""

from __future__ import annotations

import ast
from pathlib import Path

from operators import Operator, StaleMutantError
from sources import Functions

#: Faults that tests must guard against, at least; docs/silent-faults.md lists them.
REQUIRED = frozenset(range(1, 90))


class Mutant:
    """One protection, taken out of the real source, and the tests that must notice.

    Args:
        fault: Number of the silent fault.
        function: Qualified name of the function or class, see :meth:`sources.Functions.find`.
        operator: The change.
        tests: Names of tests that bear the number, with a case or without. Each must fail, in one case at least.
        ends_in: Errors, beside a failed assertion, that are a right way for these tests to fail.
        says: Text that the report of each failure must contain.
    """

    def __init__(
        self,
        fault: int,
        function: str,
        operator: Operator,
        *tests: str,
        ends_in: str | tuple[str, ...] = (),
        says: str = "",
    ) -> None:
        self.fault = fault
        self.function = function
        self.operator = operator
        self.tests = tests
        self.ends_in = (ends_in,) if isinstance(ends_in, str) else ends_in
        self.says = says

    def __str__(self) -> str:
        return f"{self.function}: {self.operator}"

    def apply(self, functions: Functions) -> tuple[Path, str]:
        """The changed file, from the root of the repository, and its text.

        Raises:
            StaleMutantError: The function, or the place in it, is not there once.
        """
        path, tree, function = functions.tree(self.function)
        try:
            self.operator.apply(function)
        except StaleMutantError as error:
            raise StaleMutantError(f"{path}, {self.function}: {error}") from None
        return path, ast.unparse(tree)
