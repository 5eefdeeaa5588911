"""For all tests, of the core and of the plugins: no deadlines, and the mark of those that compare numbers."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on the machine, and on what else it does.
settings.register_profile("sfkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sfkit")

#: A test that calls one of these holds results of kernels against others.
_COMPARISONS = {"allclose", "approx", "assert_close", "assert_rounded", "compare", "equal"}


@functools.cache
def _comparing(path: Path) -> frozenset[str]:
    """Functions of a module that compare numbers, themselves or through another one of the module."""
    used = {
        node.name: {getattr(part, "attr", getattr(part, "id", "")) for part in ast.walk(node)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    found: set[str] = set()
    while more := {name for name, names in used.items() if names & (_COMPARISONS | found)} - found:
        found |= more
    return frozenset(found)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make portable` runs, so that a new one is not forgotten."""
    for item in items:
        if isinstance(item, pytest.Function) and item.function.__name__ in _comparing(item.path):
            item.add_marker("portable")
