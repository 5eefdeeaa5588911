"""The API reference has an entry for each public name, and a docstring to show there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import sfkit

PAGES = sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.md"))
#: Packages for authors of plugins, each of whose modules is public.
PACKAGES = ("sfkit.testing", "sfkit.utils")

pytestmark = pytest.mark.skipif(not PAGES, reason="the docs are not beside the tests of an installed wheel")


def entries() -> set[str]:
    return {name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)}


def modules() -> list[str]:
    paths = {package: importlib.import_module(package).__path__ for package in PACKAGES}
    return [f"{package}.{found.name}" for package, path in paths.items() for found in pkgutil.iter_modules(path)]


@pytest.mark.parametrize("name", sfkit.__all__)
def test_each_public_name_has_an_entry_and_a_docstring(name: str) -> None:
    assert f"sfkit.{name}" in entries()
    value = getattr(sfkit, name)
    assert not inspect.isclass(value) or value.__doc__


@pytest.mark.parametrize("name", modules())
def test_each_public_module_has_an_entry_and_docstrings(name: str) -> None:
    assert name in entries()
    module = importlib.import_module(name)
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == name}
    public = [key for key, value in own.items() if not key.startswith("_") and callable(value)]
    assert [key for key in public if not own[key].__doc__] == []


def test_each_entry_is_there() -> None:
    for name in entries():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name)


def test_dir_lists_public_names_alone() -> None:
    assert dir(sfkit) == sorted(sfkit.__all__)
