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
from lerobot.policies.factory import make_pre_post_processors
from sfkit_lerobot.testing import tiny_smolvla

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


def test_the_command_of_the_readme_trains(lerobot_train, data, vlm, tmp_path) -> None:
    page = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```shell\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = [f"observation.images.camera{index}" for index in (1, 2, 3)]
    base = tmp_path / "base"
    policy = tiny_smolvla(vlm, cameras=names, train_expert_only=True)
    policy.save_pretrained(base)
    for processor in make_pre_post_processors(policy.config, dataset_stats={}):
        processor.save_pretrained(base)
    # What would be downloaded, and the reader's own names; see the comments in the page.
    stands_for = {
        "lerobot/smolvla_base": str(base),
        "you/your-dataset": f"local/metaworld-mini --dataset.root={data} --dataset.video_backend=pyav",
        "=da3-base": """='{"name": "da3-base", "config": "tiny", "size": 112}'""",
        "observation.images.front": "observation.images.corner2",
    }
    for word, other in stands_for.items():
        assert word in block
        block = block.replace(word, other)
    program, *flags = shlex.split(block.replace("\\\n", " "))
    assert program == "lerobot-train"
    short = [
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--log_freq=1",
        "--env_eval_freq=0",
        "--policy.device=cpu",
    ]
    run = lerobot_train(*flags, *short, "--dataset.episodes=[0]", f"--output_dir={tmp_path / 'run'}")
    assert [window["sf_loss"] > 0 for window in run.curve] == [True, True]
    assert run.policy.spatial_forcing.teachers[0].name == "da3-base"


def test_the_readme_repeats_no_command_that_is_not_on_the_page() -> None:
    readme = (ROOT / "plugins/lerobot_policy_spatial_forcing/README.md").read_text()
    assert not re.findall(r"^```sh\n", readme, re.MULTILINE)
    assert "docs/lerobot-train.md" in readme
