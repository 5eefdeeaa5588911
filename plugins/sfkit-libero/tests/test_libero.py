"""The simulator itself: the commands of the docs' page, on the checkpoint of a run of ``sf_smolvla``."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "libero.md"
WITHOUT_SFKIT = ROOT / "plugins" / "lerobot_policy_spatial_forcing" / "tests" / "workers" / "without_sfkit.py"

pytestmark = [
    pytest.mark.libero,
    pytest.mark.skipif(find_spec("libero") is None, reason="needs LIBERO: make libero"),
    pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not beside these tests"),
]


def _run(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


def _bin(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _record(folder: Path) -> None:
    """Two episodes of noise in the shape of LIBERO's demonstrations."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    cameras = ("observation.images.image", "observation.images.image2")
    picture = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = dict.fromkeys(cameras, picture)
    features |= {
        key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in (("observation.state", 8), ("action", 7))
    }
    data = LeRobotDataset.create("local/libero", fps=20, features=features, root=folder, use_videos=False)
    draw = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(12):
            frame: dict[str, object] = {name: draw.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in cameras}
            frame["observation.state"] = draw.normal(size=8).astype(np.float32)
            frame["action"] = draw.uniform(-1, 1, size=7).astype(np.float32)
            data.add_frame({**frame, "task": "pick up the black bowl and place it on the plate"})
        data.save_episode()
    data.finalize()


def _teacher(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    side = {"height": 32, "width": 32}
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    BitImageProcessor(size=side, crop_size=side).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands run, with the run's checkpoint where the page has it."""
    folder = tmp_path_factory.mktemp("libero")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sfkit_lerobot.testing import tiny_smolvlm

        _record(folder / "data")
        _teacher(folder / "teacher")
        tiny_smolvlm(folder / "vlm")
    flags = [
        "--dataset.repo_id=local/libero",
        "--dataset.root=data",
        "--policy.type=sf_smolvla",
        "--policy.sf.teacher=hf:teacher",
        "--policy.sf.student_layer=2",
        "--policy.vlm_model_name=vlm",
        "--policy.load_vlm_weights=false",
        "--policy.num_vlm_layers=4",
        "--policy.resize_imgs_with_padding=[64,64]",
        "--policy.train_expert_only=false",
        "--policy.freeze_vision_encoder=false",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=4",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--batch_size=2",
        "--steps=2",
        "--num_workers=0",
        "--env_eval_freq=0",
        "--output_dir=outputs/aligned",
    ]
    done = _run(folder, _bin("lerobot-train"), *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    found = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in found for line in block.replace("\\\n", " ").splitlines()]


def test_the_page_sets_libero_up_and_looks_at_it(folder: Path, commands: list[list[str]]) -> None:
    for command in commands[:2]:
        assert command[:2] == ["sfkit", "libero"]
        done = _run(folder, _bin("sfkit"), *command[1:])
        assert done.returncode == 0, done.stderr
    assert re.search(r"^libero: \d+\.\d\d CPU-seconds a step", done.stdout, re.MULTILINE)
    assert (folder / "libero.png").stat().st_size > 10_000
    assert (folder / "libero_fast_rendering.png").stat().st_size > 10_000


def test_lerobot_eval_runs_the_policy_where_sfkit_is_not(folder: Path, commands: list[list[str]]) -> None:
    program, *flags = commands[2]
    short = ["--env.episode_length=3", "--eval.n_episodes=1", "--output_dir=plain"]
    done = _run(folder, sys.executable, str(WITHOUT_SFKIT), _bin(program), *_replaced(flags, short))
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((folder / "plain" / "eval_info.json").read_text())
    assert list(info["per_group"]) == ["libero_spatial"]
    assert info["overall"]["n_episodes"] == 1


def test_the_script_prints_rate_and_time_and_marks_them(folder: Path, commands: list[list[str]]) -> None:
    program, *flags = commands[3]
    short = ["--env.episode_length=3", "--eval.n_episodes=2", "--output_dir=fast"]
    done = _run(folder, sys.executable, *_replaced(flags, short))
    assert program == "python"
    assert done.returncode == 0, done.stderr[-3000:]
    rate, time = done.stdout.splitlines()[-2:]
    assert rate.startswith("libero_spatial_fast_rendering, task 0: 0 of 2 episodes succeed: 0% (95 % Wilson interval")
    assert re.fullmatch(r"6 steps: \d+\.\d+ s and \d+\.\d+ CPU-seconds a step, .*", time)
    info = json.loads((folder / "fast" / "eval_info.json").read_text())
    assert list(info["per_group"]) == ["libero_spatial_fast_rendering"]


@pytest.mark.parametrize(
    ("flag", "environ", "said"),
    [("--env.episode_length=5000", {}, "An episode of 5000 steps"),
     ("--rename_map={'observation.images.image': 'observation.top'}", {}, "The policy looks at"),
     ("--env.episode_length=3", {"LIBERO_CONFIG_PATH": "nowhere"}, "LIBERO would ask for it, and wait"),
     ("--env.episode_length=3", {"MUJOCO_GL": "glx"}, "needs a screen")],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(
    flag: str, environ: dict[str, str], said: str, folder: Path, commands: list[list[str]], tmp_path: Path
) -> None:
    flags = _replaced(commands[3][1:], [flag.replace("'", '"'), f"--output_dir={tmp_path / 'out'}"])
    done = _run(folder, sys.executable, *flags, **environ)
    assert done.returncode == 1
    error = done.stderr[done.stderr.rindex("error: ") :].splitlines()
    assert said in error[0]
    assert [line[:5] for line in error[1:]] == ["  -> "]


def test_a_renderer_that_fails_gives_its_last_line(folder: Path) -> None:
    done = _run(folder, _bin("sfkit"), "libero", "check", MUJOCO_EGL_DEVICE_ID="99")
    assert done.returncode == 1
    assert "The simulator failed: RuntimeError" in done.stderr
    assert "Traceback" not in done.stderr


def _replaced(flags: list[str], others: list[str]) -> list[str]:
    names = {one.partition("=")[0] for one in others}
    return [*(flag for flag in flags if flag.partition("=")[0] not in names), *others]
