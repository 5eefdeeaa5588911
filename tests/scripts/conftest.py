"""Modules of a script, which are no part of any package, for as long as a test runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """``load("metrics/sources")``: a module of a script."""
    if sys.version_info < (3, 12) or not SCRIPTS.is_dir():
        pytest.skip("scripts run in the environment of a checkout")
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        folder, _, module = name.partition("/")
        monkeypatch.syspath_prepend(str(SCRIPTS / folder))
        return importlib.import_module(module)

    yield load
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(SCRIPTS)):
            del sys.modules[name]
