"""The support table: from the registry to the terminal and to the page of the docs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from sfkit.cli import main
from sfkit.cli.listing import support_tables
from sfkit.errors import AdapterError, PluginError, UnknownNameError
from sfkit.factory.components import build_adapter
from sfkit.registry.registry import Entry, Registry, default_registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "policies.md"


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


def test_the_support_tables_list_each_policy_and_each_reason(registry: Registry) -> None:
    assert support_tables(registry).splitlines() == [
        "| policy | from | aligned | trained by default | verified on |",
        "| --- | --- | --- | --- | --- |",
        "| `a` | `one` | an adapter | not known | not said |",
        "| `b` | `two` | tokens | everything | a tiny one |",
        "",
        "| policy | from | why there is no adapter |",
        "| --- | --- | --- |",
        "| `unfit` | `two` | it has no pictures |",
    ]


def test_the_terminal_shows_them_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfkit.cli.default_registry", lambda: registry)
    for flags, told in (([], "unfit (two): no adapter: it has no pictures"), (["--markdown"], "| `unfit` |")):
        with pytest.raises(SystemExit):
            main(["policies", *flags])
        assert told in capsys.readouterr().out


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


@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside the tests of an installed wheel")
def test_the_page_of_the_docs_is_the_registry() -> None:
    pytest.importorskip("sfkit_lerobot", reason="the plugins are not installed")
    _, _, rest = PAGE.read_text().partition("<!-- sfkit policies --markdown -->\n")
    shown, _, _ = rest.partition("<!-- end of the table -->\n")
    assert shown.strip() == support_tables(default_registry()).strip(), "put in what `sfkit policies --markdown` prints"


@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside the tests of an installed wheel")
def test_every_policy_of_this_project_says_what_the_table_tells() -> None:
    for entry in default_registry().of_kind("policy"):
        assert entry.aligned, entry.name
        assert entry.trains, entry.name
        assert entry.verified, entry.name
