"""Plugins: loaded one by one, found by name, and never able to harm each other (fault 40)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sfkit import builtin, hookimpl
from sfkit.errors import PluginError, UnknownNameError
from sfkit.registry import Registry, discover, split_name


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
        if isinstance(self.outcome, Exception):
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


def test_fault_40_a_duplicate_name_is_an_error_that_names_both_owners() -> None:
    registry = discover_fakes([FakePoint("one", teacher("t")), FakePoint("two", teacher("t"))], None)
    with pytest.raises(PluginError, match="registered by one and two"):
        registry.get("teacher", "t")


def test_fault_40_a_misspelled_hook_is_an_error() -> None:
    registry = discover_fakes([FakePoint("typo", plugin(register_teacher=lambda register: None))], None)
    assert "register_teacher" in str(registry.broken[0])


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


def test_unknown_names_get_the_nearest_match_and_what_is_installed() -> None:
    registry = discover_fakes([FakePoint("good", teacher("vggt"))], None)
    with pytest.raises(UnknownNameError, match="Did you mean 'vggt'") as caught:
        registry.get("teacher", "vgtt")
    assert caught.value.remedy == "Installed: vggt."


def test_the_list_of_plugins_to_load_can_be_limited() -> None:
    points = [FakePoint(name, teacher(name)) for name in ("sfkit", "one", "two")]
    assert [entry.name for entry in discover_fakes(points, "one").entries] == ["sfkit", "one"]
    assert [entry.name for entry in discover_fakes(points, "").entries] == ["sfkit"]


def test_an_import_error_of_the_target_is_explained() -> None:
    registry = discover_fakes([FakePoint("late", teacher("t", "no.such:Thing"))], None)
    with pytest.raises(PluginError, match=r"no\.such:Thing") as caught:
        registry.get("teacher", "t").load()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_policies_are_matched_by_class_name_most_derived_first() -> None:
    class Base: ...

    class Derived(Base): ...

    def register_policies(register: Any) -> None:
        register("math:pi", name="base", handles=("*.Base",))
        register("math:pi", name="derived", handles=("*.Derived",))

    registry = discover_fakes([FakePoint("p", plugin(register_policies=register_policies))], None)
    assert [entry.name for entry in registry.adapters_for(Derived)] == ["derived", "base"]
    assert registry.adapters_for(int) == []


def test_a_name_with_an_argument_is_found_by_what_stands_before_the_colon() -> None:
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
