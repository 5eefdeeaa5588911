"""Naming the policy on the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sfkit_tools import load_target

from sfkit.cli import main
from sfkit.errors import ConfigError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "any-policy.md"

SCRIPT = """
import torch
from sfkit.testing.tiny import TinyPolicy, tiny_batch
import beside_it

MODEL = TinyPolicy()

def make():
    torch.manual_seed(beside_it.SEED)
    return TinyPolicy(), tiny_batch()

def without_images():
    batch = tiny_batch()
    batch["images"] = batch["images"] - 60
    return TinyPolicy(), batch

def alone():
    return TinyPolicy()

def swapped():
    return tiny_batch(), TinyPolicy()

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_policy.py").write_text(SCRIPT)
    (tmp_path / "beside_it.py").write_text("SEED = 0\n")
    (tmp_path / "lacking.py").write_text("import not_installed_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "own_policy.py"
    for name in ("own_policy", "beside_it", "lacking"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("form", ["own_policy:make", "own_policy.py:make", "{}:make"])
def test_by_module_or_by_file(script: Path, form: str) -> None:
    policy, batch = load_target(form.format(script))
    assert type(policy).__name__ == "TinyPolicy"
    assert "images" in batch


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_policy", "names no function"),
        (":make", "names no function"),
        ("another.py:make", "There is no file another.py"),
        ("own_polisy:make", "There is no module 'own_polisy'"),
        ("own_policy:mak", "has no function 'mak'. Did you mean 'make'"),
        ("own_policy:MODEL", "has no function 'MODEL'"),
        ("own_policy:alone", "returned .*TinyPolicy.*expected"),
        ("own_policy:swapped", r"returned \(dict, TinyPolicy\), expected \(policy, batch\)"),
    ],
)
def test_a_wrong_target_is_an_error(script: Path, target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_target(target)


def test_faults_of_the_users_own_code_are_shown_as_they_are(script: Path) -> None:
    with pytest.raises(RuntimeError, match="no weights here"):
        load_target("own_policy:broken")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load_target("lacking:make")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_prints_tables_and_code(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "own_policy:make") == 0
    printed = capsys.readouterr().out
    for line in ("blocks.2.input_layernorm", "3 of 3", "100% moved their own token", "    tokens=Span(0, 32),"):
        assert line in printed


def test_missing_options_are_printed_and_exit_with_1(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "own_policy:without_images", "--images", "images") == 1
    printed = capsys.readouterr().out
    assert "not found: pixels" in printed
    assert "    pixels=...," in printed
    assert run("inspect", "own_policy:make", "--images", "frames") == 1
    assert "images='frames' is not in the batch" in capsys.readouterr().err


@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside the tests of an installed wheel")
def test_the_page_of_the_docs_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = re.search(r"^sfkit (inspect \S+)$", PAGE.read_text(), re.MULTILINE)
    assert command is not None
    assert run(*command[1].split()) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip("\n").splitlines())
    shown = PAGE.read_text().partition("```text\n")[2].partition("\n```")[0]
    norms = re.compile(r"\d\.\de[-+]\d\d")  # of gradients, which a processor may round in another way
    assert norms.sub("#", shown) == norms.sub("#", printed)
    sys.modules.pop("policy", None)
