"""Plugins: loaded one by one, found by name, and never able to harm each other (fault 40)."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sfkit import hookimpl
from sfkit.errors import PluginError, UnknownNameError
from sfkit.registry import builtin
from sfkit.registry.registry import CORE, Registry, discover, split_name


def plugin(**hooks: Any) -> SimpleNamespace:
    return SimpleNamespace(SFKIT_API=1, **{name: hookimpl(function) for name, function in hooks.items()})


def teacher(name: str, target: Any = "math:pi") -> SimpleNamespace:
    def register_teachers(register: Any) -> None:
        register(target, name=name, summary="s", license="MIT")

    return plugin(register_teachers=register_teachers)


class FakePoint:
    """An entry point whose module is given, or whose load raises. (EntryPoint itself cannot be subclassed on 3.10.)"""

    def __init__(self, distribution: str, outcome: Any) -> None:
        self.name, self.value, self.outcome = distribution, "x", outcome
        self.dist = SimpleNamespace(name=distribution)

    def load(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def discover_fakes(points: list[FakePoint], only: str | None) -> Registry:
    return discover(cast(Any, points), only)


def test_built_ins_come_through_the_same_door() -> None:
    registry = Registry()
    registry.add_plugin(builtin, "sfkit")
    assert registry.get("teacher", "geometry").load().name == "geometry"
    assert registry.get("objective", "cosine").load().name == "cosine"
    assert registry.get("projector", "mlp").load().name == "mlp"


def test_fault_40_a_broken_plugin_stops_nobody_else() -> None:
    points = [FakePoint("acme-bad", ModuleNotFoundError("No module named 'acme'")), FakePoint("good", teacher("t"))]
    registry = discover_fakes(points, None)
    assert registry.get("teacher", "t").distribution == "good"
    assert [broken.distribution for broken in registry.broken] == ["acme-bad"]
    with pytest.raises(UnknownNameError, match="acme-bad: ModuleNotFoundError: No module named 'acme'") as caught:
        registry.get("teacher", "acme")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_fault_40_a_duplicate_name_names_both_owners() -> None:
    registry = discover_fakes([FakePoint("one", teacher("t")), FakePoint("two", teacher("t"))], None)
    with pytest.raises(PluginError, match="registered by one and two"):
        registry.get("teacher", "t")


def test_fault_40_a_misspelled_hook_is_an_error() -> None:
    registry = discover_fakes([FakePoint("typo", plugin(register_teacher=lambda register: None))], None)
    assert "register_teacher" in str(registry.broken[0])


class Mute(Exception):  # noqa: N818 - it is what a plugin may raise
    def __str__(self) -> str:
        raise RuntimeError("no message")


@pytest.mark.parametrize("error", [SystemExit("bye"), SystemExit(0), Mute()])
def test_a_plugin_that_exits_ends_itself_alone(error: BaseException) -> None:
    def register_teachers(register: Any) -> None:
        raise error

    bad = (error, plugin(register_teachers=register_teachers))
    points = [*(FakePoint(f"bad{i}", outcome) for i, outcome in enumerate(bad)), FakePoint("good", teacher("t"))]
    registry = discover_fakes(points, None)
    assert [entry.name for entry in registry.entries] == ["t"]
    assert [broken.distribution for broken in registry.broken] == ["bad0", "bad1"]
    assert all(type(error).__name__ in str(broken) for broken in registry.broken)


def test_a_target_that_exits_when_imported_is_explained(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit('bye')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = discover_fakes([FakePoint("late", teacher("t", "exits_at_import:Thing"))], None)
    with pytest.raises(PluginError, match="could not be imported from 'exits_at_import:Thing': SystemExit: bye"):
        registry.get("teacher", "t").load()


def test_an_interruption_by_the_user_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        discover_fakes([FakePoint("slow", KeyboardInterrupt())], None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": 5}, "name is 5, no text"),
        ({"name": None}, "name is None, no text"),
        ({"name": ""}, "name is ''"),
        ({"name": "a:b"}, "name is 'a:b'"),
        ({"name": "[/bold]"}, "name is"),
        ({"name": "a\nb"}, "no text of one line"),
        ({"summary": 5}, "summary is 5"),
        ({"summary": "two\nlines"}, "summary is"),
        ({"summary": "\x1b[2J"}, "summary is"),
        ({"license": None}, "license is None"),
        ({"argument": 1}, "argument is 1"),
        ({"placeholder": ["x"]}, "placeholder is"),
        ({"handles": "pkg.*.X"}, r"handles is 'pkg\.\*\.X', and not a tuple"),
        ({"handles": (1,)}, r"handles is \(1,\)"),
        ({"handles": 7}, "handles is 7"),
        ({"target": "no colon"}, "target is 'no colon'"),
        ({"target": 5}, "target is 5"),
        ({"target": "os;x:y"}, "target is"),
        ({"sumary": "x"}, "unknown sumary. Did you mean 'summary'"),
    ],
)
def test_what_a_plugin_registers_is_validated(fields: dict[str, Any], says: str) -> None:
    def register_teachers(register: Any) -> None:
        given = {"target": "math:pi", "name": "fine", **fields}
        register(given.pop("target"), **given)

    points = [FakePoint("acme-bad", plugin(register_teachers=register_teachers)), FakePoint("good", teacher("t"))]
    registry = discover_fakes(points, None)
    assert [entry.name for entry in registry.of_kind("teacher")] == ["t"]
    (broken,) = registry.broken
    assert isinstance(broken.error, PluginError)
    assert broken.distribution == "acme-bad"
    assert re.search(says, str(broken)), str(broken)


def test_a_list_of_patterns_will_do() -> None:
    def register_policies(register: Any) -> None:
        register("math:pi", name="p", handles=[f"{__name__.split('.')[0]}.*Base"])

    registry = discover_fakes([FakePoint("p", plugin(register_policies=register_policies))], None)
    assert registry.entries[0].handles == (f"{__name__.split('.')[0]}.*Base",)


def test_a_plugin_that_fails_half_way_registers_nothing() -> None:
    def register_teachers(register: Any) -> None:
        register("math:pi", name="first")
        raise RuntimeError("half way")

    registry = discover_fakes([FakePoint("half", plugin(register_teachers=register_teachers))], None)
    assert registry.entries == []
    assert "half way" in str(registry.broken[0])


def test_the_interface_version_is_checked() -> None:
    old = teacher("t")
    old.SFKIT_API = 0
    registry = discover_fakes([FakePoint("old", old)], None)
    assert "plugin interface 0, this sfkit has 1" in str(registry.broken[0])


def test_unknown_names_show_the_nearest_and_the_installed_names() -> None:
    registry = discover_fakes([FakePoint("good", teacher("vggt"))], None)
    with pytest.raises(UnknownNameError, match="Did you mean 'vggt'") as caught:
        registry.get("teacher", "vgtt")
    assert caught.value.remedy == "Installed: vggt."


def test_the_list_of_plugins_to_load_can_be_limited() -> None:
    points = [FakePoint(name, teacher(name)) for name in ("spatial-forcing", "one", "two")]
    assert [entry.name for entry in discover_fakes(points, "one").entries] == ["spatial-forcing", "one"]
    assert [entry.name for entry in discover_fakes(points, "").entries] == ["spatial-forcing"]


def test_an_import_error_of_the_target_is_explained() -> None:
    registry = discover_fakes([FakePoint("late", teacher("t", "no.such:Thing"))], None)
    with pytest.raises(PluginError, match=r"no\.such:Thing") as caught:
        registry.get("teacher", "t").load()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_policies_are_matched_by_class_name_most_derived_first() -> None:
    class Base: ...

    class Derived(Base): ...

    def register_policies(register: Any) -> None:
        register("math:pi", name="base", handles=(f"{__name__.split('.')[0]}.*Base",))
        register("math:pi", name="derived", handles=(f"{__name__.split('.')[0]}.*Derived",))

    registry = discover_fakes([FakePoint("p", plugin(register_policies=register_policies))], None)
    assert [entry.name for entry in registry.adapters_for(Derived)] == ["derived", "base"]
    assert registry.adapters_for(int) == []


def test_a_name_is_looked_up_without_its_argument() -> None:
    def register_teachers(register: Any) -> None:
        register("math:pi", name="hf", argument="model", placeholder="repo or folder")
        register("math:pi", name="plain")

    registry = discover_fakes([FakePoint("p", plugin(register_teachers=register_teachers))], None)
    entry = registry.get("teacher", "hf:owner/model:with-colon")
    assert (entry.name, entry.argument, entry.form) == ("hf", "model", "hf:<repo or folder>")
    assert registry.get("teacher", "hf") is entry
    assert split_name("hf:owner/model:with-colon") == ("hf", "owner/model:with-colon")
    assert split_name("plain") == ("plain", None)
    with pytest.raises(UnknownNameError, match="'plain' takes nothing after a colon, got 'x'"):
        registry.get("teacher", "plain:x")
    with pytest.raises(UnknownNameError, match=r"Unknown teacher 'hff'\. Did you mean 'hf'") as caught:
        registry.get("teacher", "hff:owner/model")
    assert caught.value.remedy == "Installed: hf:<repo or folder>, plain."


@pytest.mark.parametrize(
    "handles",
    [
        "pkg.*.X",
        ("*",),
        ("pkg.*",),
        ("*.X",),
        ("pkg",),
        ("pkg.",),
        (".X",),
        ("pkg.*.*",),
        tuple("pkg.*.X"),
        ("a.B", "*.*"),
    ],
)
def test_fault_73_a_pattern_names_a_package_and_a_class(handles: Any) -> None:
    def register_policies(register: Any) -> None:
        register("math:pi", name="greedy", handles=handles)

    registry = discover_fakes([FakePoint("acme", plugin(register_policies=register_policies))], None)
    (broken,) = registry.broken
    assert "acme registers policy 'greedy' wrongly: handles is" in str(broken)
    assert ("write ('pkg.*.X',), with its comma" in str(broken)) == isinstance(handles, str)
    assert registry.adapters_for(Registry) == []


class Cat:
    name = "cat"


@pytest.mark.parametrize("target", [Cat, f"{__name__}:Cat"])
def test_fault_74_another_name_than_that_of_the_class_is_refused(target: Any) -> None:
    registry = discover_fakes(
        [FakePoint("acme", teacher("dog", target)), FakePoint("zoo", teacher("cat", target))], None
    )
    with pytest.raises(PluginError, match="acme registers teacher 'dog', whose class says that its name is 'cat'"):
        registry.get("teacher", "dog").load()
    assert registry.get("teacher", "cat").load() is Cat


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("objective", "cosine"), ("teacher", "geometry"), ("projector", "mlp"), ("transform", "pca"), ("schedule", "stop"),
     ("preset", "repa")],
)  # fmt: skip
def test_fault_74_names_of_the_core_are_reserved(kind: Any, name: str, first: bool) -> None:
    def register_all(register: Any) -> None:
        register("math:pi", name=name)
        register("math:pi", name="another")

    points = [FakePoint(CORE, builtin), FakePoint("acme", plugin(**{f"register_{kind}s": register_all}))]
    registry = discover_fakes(points[::-1] if first else points, None)
    assert f"acme registers {kind} {name!r}, a name of the core" in str(registry.broken[0])
    assert registry.get(kind, name).distribution == CORE
    assert [entry.name for entry in registry.entries if entry.distribution == "acme"] == []
