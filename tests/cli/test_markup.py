"""Names and sentences of plugins and policies are printed as they are, whatever brackets they hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from sfkit.cli import main
from sfkit.cli.console import plain_console
from sfkit.config import Options
from sfkit.presets import Preset
from sfkit.registry.registry import BrokenPlugin, Entry, Registry

#: An end without a beginning is an error in rich's markup, and a word in brackets is swallowed.
HOSTILE = "a [/bold] :smile: [red] b"


class Named(Options):
    word: str = HOSTILE


class Thing:
    Options: ClassVar[type[Options]] = Named


PRESET = Preset(
    name="odd",
    source=HOSTILE,
    arguments={"depth": HOSTILE},
    teacher_hint=HOSTILE,
    released=(HOSTILE,),
    paper=(HOSTILE,),
    missing=(HOSTILE,),
)


def odd(name: str = "x") -> None:
    print(name)


odd.__doc__ = HOSTILE


@pytest.fixture(autouse=True)
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry whose plugins say such things."""
    words: dict[str, Any] = {"summary": HOSTILE, "license": HOSTILE, "placeholder": HOSTILE}
    preset: Any = PRESET
    monkeypatch.setenv("COLUMNS", "300")
    registry = Registry(
        [
            Entry("teacher", "odd", Thing, HOSTILE, argument="word", **words),
            Entry("policy", "odd", Thing, HOSTILE, aligned=HOSTILE, trains=HOSTILE, verified=HOSTILE),
            Entry("policy", "unfit", None, HOSTILE, reason=HOSTILE),
            Entry("preset", "odd", preset, HOSTILE, summary=HOSTILE),
            Entry("command", "odd", odd, HOSTILE, summary=HOSTILE),
        ],
        [BrokenPlugin(HOSTILE, "odd", ImportError(HOSTILE))],
    )
    monkeypatch.setattr("sfkit.cli.default_registry", lambda: registry)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plugins",), ("plugins", "--json"), ("teachers",), ("teachers", "odd"), ("policies",),
        ("presets",), ("presets", "odd"), ("--help",), ("odd", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_listings_print_brackets_as_they_are(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    printed = capsys.readouterr().out
    # Help is drawn by typer, which takes a word between colons for an image; it can do no harm.
    assert (HOSTILE if arguments != ("--help",) else "a [/bold] ") in printed
    assert "[red] b" in printed


@pytest.mark.parametrize("arguments", [("teachers", "[/x]"), ("presets", "[/x]"), ("[/x]",), ("plugins", "--[/x]")])
def test_errors_print_brackets_as_they_are(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (1, 2)
    assert "[/x]" in capsys.readouterr().err


def _console() -> tuple[Console, io.StringIO]:
    printed = io.StringIO()
    console = plain_console(highlight=False)
    console.file, console.width = printed, 300
    return console, printed


def test_an_inspection_prints_brackets_as_they_are() -> None:
    print_inspection = pytest.importorskip("sfkit_tools.inspect_command").print_inspection

    stack = SimpleNamespace(
        sees=True, path=HOSTILE, blocks=2, kind=HOSTILE, parameters=1, tap=HOSTILE, fired=2, shape=(1, 2),
        gradient=None, reaches=1,
    )  # fmt: skip
    tap = SimpleNamespace(student_layer=HOSTILE, path=HOSTILE, fired=1, gradient=None, trained=None)
    found: Any = SimpleNamespace(
        policy=HOSTILE, stacks=[stack], taps=[tap], hits=0.5, notes=[HOSTILE], missing=[HOSTILE],
        snippet=lambda: HOSTILE,
    )  # fmt: skip
    console, printed = _console()
    print_inspection(found, console)
    assert printed.getvalue().count(HOSTILE) == 9


def test_a_ranking_prints_brackets_as_they_are() -> None:
    print_ranking = pytest.importorskip("sfkit_tools.rank_layers_command").print_ranking

    measure = SimpleNamespace(value=0.5, low=0.4, high=0.6, best=1.0)
    ranking: Any = SimpleNamespace(
        policy=HOSTILE, teacher=HOSTILE, samples=1, tokens=1, blocks=2,
        layers=[SimpleNamespace(student_layer=HOSTILE, cka=measure, probe=None)],
        rivals=lambda by: [HOSTILE], best=lambda by: HOSTILE,
    )  # fmt: skip
    console, printed = _console()
    print_ranking(ranking, 4, console)
    assert printed.getvalue().count(HOSTILE) == 4


def test_a_progress_bar_prints_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("sfkit_backbones.progress")

    printed = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=printed, force_terminal=True, width=300))
    with module.progress(f"loading {HOSTILE}", 2**40) as advance:
        advance(1)
    assert "a [/bold] " in printed.getvalue()


def test_json_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plugins", "--json"])
    assert json.loads(capsys.readouterr().out)["broken"][0]["distribution"] == HOSTILE


def test_no_listing_makes_a_console_of_its_own() -> None:
    """One that is made elsewhere reads markup."""
    folder = Path(main.__code__.co_filename).parent
    makers = [path.name for path in folder.glob("*.py") if "Console(" in path.read_text()]
    assert makers == ["console.py"]
