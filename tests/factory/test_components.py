"""From names with an argument (``name:argument``) to components, and back through what is saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import Field

from sfkit import hookimpl
from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError
from sfkit.factory.components import build_teacher
from sfkit.registry.registry import Registry
from sfkit.testing.tiny import PatchTeacher, PatchTeacherOptions


class NamedOptions(PatchTeacherOptions):
    model: str = Field(description="Which.")


class NamedTeacher(PatchTeacher):
    name = "named"
    Options: ClassVar[type[Options]] = NamedOptions
    options: NamedOptions


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def register_teachers(register: Any) -> None:
        register(NamedTeacher, name="named", argument="model", placeholder="which one")

    registry = Registry()
    registry.add_plugin(SimpleNamespace(SFKIT_API=1, register_teachers=hookimpl(register_teachers)), "acme")
    monkeypatch.setattr("sfkit.factory.components.default_registry", lambda: registry)


@pytest.mark.parametrize(
    "value",
    [
        "named:a/b:c",
        ("named:a/b:c", {}),
        ("named:a/b:c", {"model": "a/b:c"}),
        ("named", {"model": "a/b:c"}),
        {"name": "named:a/b:c"},
        ComponentSpec(name="named:a/b:c"),
    ],
)
def test_the_argument_goes_to_the_option_that_takes_it(value: Any) -> None:
    teacher = build_teacher(value)
    assert teacher.options == NamedOptions(model="a/b:c")
    assert build_teacher(teacher.spec).options == teacher.options


def test_other_options_stand_beside_it() -> None:
    assert build_teacher(("named:x", {"dim": 3})).options == NamedOptions(model="x", dim=3)


@pytest.mark.parametrize("value", ["named", "named:", ("named", {"dim": 3})])
def test_a_missing_argument_is_an_error_that_tells_the_form(value: Any) -> None:
    with pytest.raises(ConfigError, match="its name has the form named:<which one>") as caught:
        build_teacher(value)
    assert "named:<which one>" in caught.value.remedy


def test_two_different_arguments_are_an_error() -> None:
    with pytest.raises(ConfigError, match="which of the two"):
        build_teacher(("named:x", {"model": "y"}))
