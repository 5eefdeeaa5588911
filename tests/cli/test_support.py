"""The support table on the terminal."""

from __future__ import annotations

import re

import pytest
from torch import nn

from sfkit.cli import main
from sfkit.errors import AdapterError, PluginError, UnknownNameError
from sfkit.factory.components import build_adapter
from sfkit.registry.registry import Entry, Registry, default_registry


class Unfit(nn.Module):
    pass


@pytest.fixture
def registry() -> Registry:
    name = f"{Unfit.__module__}.{Unfit.__qualname__}"
    return Registry(
        [
            Entry("policy", "b", "m:B", "two", aligned="tokens", trains="everything", verified="a tiny one"),
            Entry("policy", "a", "m:A", "one", summary="an adapter"),
            Entry("policy", "unfit", None, "two", handles=(name,), reason="it has no pictures"),
        ]
    )


def test_policies_with_and_without_an_adapter_are_listed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfkit.cli.default_registry", lambda: registry)
    with pytest.raises(SystemExit):
        main(["policies"])
    shown = capsys.readouterr().out
    assert re.search(r"b +two +tokens +everything +a tiny one", shown)
    assert "unfit (two): no adapter: it has no pictures" in shown


def test_an_unsupported_policy_is_refused_with_the_reason(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfkit.factory.components.default_registry", lambda: registry)
    with pytest.raises(AdapterError, match=r"unfit \(.*Unfit\) cannot be aligned: it has no pictures\."):
        build_adapter(Unfit(), None)
    assert [entry.name for entry in registry.of_kind("policy")] == ["a", "b"]
    with pytest.raises(UnknownNameError, match="unfit"):
        registry.get("policy", "unfit")
    with pytest.raises(PluginError, match="cannot be used: it has no pictures"):
        registry.unsupported()[0].load()


@pytest.mark.parametrize(("target", "reason"), [(None, ""), ("m:A", "because")])
def test_an_entry_has_a_target_or_a_reason(target: str | None, reason: str) -> None:
    with pytest.raises(PluginError, match="a target"):
        Entry("policy", "x", target, "one", reason=reason)


def test_every_policy_of_this_project_fills_its_row() -> None:
    for entry in default_registry().of_kind("policy"):
        assert entry.aligned, entry.name
        assert entry.trains, entry.name
        assert entry.verified, entry.name
