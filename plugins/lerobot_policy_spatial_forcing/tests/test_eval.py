"""``lerobot-eval`` on a checkpoint of an aligned run, in a process in which nothing of sfkit can be imported."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

WORKERS = Path(__file__).parent / "workers"
BACKEND = next((name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)), None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("metaworld") is None or BACKEND is None, reason="needs metaworld, and EGL or OSMesa")
def test_lerobot_eval_runs_an_aligned_policy_where_sfkit_is_not(trained, tmp_path) -> None:
    model = trained[1] / "checkpoints" / "000006" / "pretrained_model"
    flags = [
        f"--policy.path={model}",
        "--policy.device=cpu",
        '--rename_map={"observation.image": "observation.images.corner2"}',
        "--env.type=metaworld",
        "--env.task=reach-v3",
        "--eval.batch_size=1",
        "--eval.n_episodes=1",
        f"--output_dir={tmp_path}",
    ]
    command = [sys.executable, str(WORKERS / "without_sfkit.py"), str(WORKERS / "short_episodes.py"), *flags]
    environment = {**os.environ, "MUJOCO_GL": str(BACKEND).lower(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
