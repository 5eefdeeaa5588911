"""The commands of the docs' page as they stand there: train, be killed while saving, resume, evaluate without sfkit."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "lerobot-train.md"
WORKERS = Path(__file__).parent / "workers"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside these tests")


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    return [shlex.split(block.replace("\\\n", " ")) for block in _blocks(PAGE)]


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("walkthrough")
    for name in ("examples", "plugins"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200)


def _bin(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def test_train_kill_resume_and_evaluate_without_sfkit(folder) -> None:
    build, train, resume, evaluate = _commands()
    assert (build[0], train[0], resume[0], evaluate[0]) == ("python", "lerobot-train", "lerobot-train", "python")

    with contextlib.chdir(folder):  # in this process, which has imported LeRobot already
        exec(build[2])
    done = _run(folder, sys.executable, str(WORKERS / "killed.py"), *train[1:])
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    checkpoints = folder / "outputs/aligned/checkpoints"
    assert (checkpoints / "last").resolve().name == "000002"
    assert not (checkpoints / "000004/pretrained_model/spatial_forcing").exists()

    done = _run(folder, _bin(resume[0]), *resume[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (checkpoints / "last").resolve().name == "000006"
    assert "step:6" in done.stderr + done.stdout
    assert "sf_loss" in done.stderr + done.stdout
    for step in ("000004", "000006"):
        model = checkpoints / step / "pretrained_model"
        assert not [path.name for path in model.iterdir() if path.name.startswith(".")]
        assert json.loads((model / "config.json").read_text())["type"] == "smolvla"

    done = _run(folder, sys.executable, str(WORKERS / "without_sfkit.py"), *evaluate[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"smolvla, 8 frames: mean error of the next action \d+\.\d+", done.stdout)


def test_the_readme_of_the_repository_shows_the_same_commands() -> None:
    assert _blocks(ROOT / "README.md") == _blocks(PAGE)


def test_the_readme_repeats_no_command_that_is_not_on_the_page() -> None:
    readme = (ROOT / "plugins/lerobot_policy_spatial_forcing/README.md").read_text()
    assert not re.findall(r"^```sh\n", readme, re.MULTILINE)
    assert "docs/lerobot-train.md" in readme
