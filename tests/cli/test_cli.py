from __future__ import annotations

import json
import subprocess
import sys

import pytest

import sfkit
from sfkit.cli import main
from sfkit.registry import builtin
from sfkit.registry.registry import BrokenPlugin, Entry, Registry


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of our own in the place of what is installed."""
    registry = Registry()
    registry.add_plugin(builtin, "sfkit")
    monkeypatch.setattr("sfkit.cli.default_registry", lambda: registry)
    return registry


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"sfkit {sfkit.__version__}"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("plugins", "teachers", "demo"))


def test_help_imports_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys\n"
        "from sfkit.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'pydantic', 'lerobot', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=1200)


def test_plugins_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plugins") == 0
    printed = capsys.readouterr().out
    assert "geometry" in printed
    assert "cosine" in printed


def test_plugins_as_json_with_what_is_broken(installed: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    installed.broken.append(BrokenPlugin("sfkit-odd", "odd", ImportError("no module [odd]")))
    assert run("plugins", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"kind": "teacher", "name": "geometry"}.items() <= printed["entries"][0].items()
    assert printed["broken"][0]["distribution"] == "sfkit-odd"
    assert run("plugins") == 0
    assert "no module [odd]" in capsys.readouterr().out


def test_teachers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("teachers") == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert run("teachers", "geometry") == 0
    printed = capsys.readouterr().out
    assert "position_mean" in printed
    assert "Fourier" in printed


def test_an_unknown_teacher_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("teachers", "geometri") == 1
    printed = capsys.readouterr().err
    assert "Did you mean 'geometry'" in printed
    assert "Traceback" not in printed


def test_wrong_usage_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plugins", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def hello(name: str = "world", loud: bool = False) -> None:
    """Greet.

    It is a plugin's command.
    """
    print(f"hello {name}" + "!" * loud)


def test_a_plugins_command_gets_its_own_options_and_help(
    installed: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.entries.append(Entry("command", "hello", hello, "sfkit-hello", summary="greets"))
    assert run("--help") == 0
    assert "greets" in capsys.readouterr().out
    assert run("hello", "--name", "you", "--loud") == 0
    assert capsys.readouterr().out == "hello you!\n"
    assert run("hello", "--help") == 0
    printed = capsys.readouterr().out
    assert "sfkit hello" in printed
    assert "--loud" in printed


def test_a_command_that_cannot_be_imported_is_explained(
    installed: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.entries.append(Entry("command", "odd", "no_such_module:run", "sfkit-odd", summary="is odd"))
    assert run("--help") == 0
    assert "is odd" in capsys.readouterr().out
    assert run("odd", "--x", "1") == 1
    assert "sfkit-odd could not be imported" in capsys.readouterr().err.replace("\n", " ")


def test_a_plugin_cannot_take_the_place_of_a_built_in_command(
    installed: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.entries.append(Entry("command", "plugins", hello, "sfkit-hello"))
    assert run("plugins", "--json") == 0
    assert "hello world" not in capsys.readouterr().out


def test_two_plugins_with_one_command_are_told(installed: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for owner in ("one", "two"):
        installed.entries.append(Entry("command", "hello", hello, owner))
    assert run("hello") == 1
    assert "registered by one and two" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("arguments", [(), ("--steps", "20"), ("--help",)])
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("demo", "demo"),
        ("inspect", "tools"),
        ("libero", "libero"),
        ("rank-layers", "tools"),
        ("parity", "backbones"),
    ],
)
def test_a_missing_command_says_what_brings_it(
    command: str, extra: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, *arguments) == 1
    assert f'pip install "spatial-forcing[{extra}]"' in capsys.readouterr().err


@pytest.mark.parametrize(("command", "distribution"), [("demo", "sfkit-demo"), ("rank-layers", "sfkit-tools")])
def test_a_missing_command_names_its_broken_plugin(
    command: str, distribution: str, installed: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.broken.append(BrokenPlugin(distribution, "module", ImportError("no such host")))
    assert run(command) == 1
    assert "no such host" in capsys.readouterr().err


def test_a_teacher_with_an_argument_is_listed_with_its_form(
    installed: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfkit.testing.tiny import PatchTeacher

    class Named(PatchTeacher):
        name = "hf"

    installed.entries.append(Entry("teacher", "hf", Named, "acme", argument="model", placeholder="repo"))
    for arguments in (("teachers",), ("plugins",), ("teachers", "hf"), ("teachers", "hf:owner/model")):
        assert run(*arguments) == 0
        assert "hf:<repo>" in capsys.readouterr().out
