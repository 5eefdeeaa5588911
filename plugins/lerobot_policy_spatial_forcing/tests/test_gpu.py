"""What a CPU cannot show: the command on a GPU, in mixed precision, on one and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WORKER = Path(__file__).parent / "workers" / "two_ranks.py"


@pytest.fixture
def flags(common, shape, aligned) -> list[str]:
    return [*(flag for flag in common if not flag.startswith("--policy.device")), *shape, *aligned]


def test_bfloat16_on_a_gpu_trains_and_resumes(lerobot_train, resume, flags, tmp_path) -> None:
    amp = ["--policy.device=cuda", "--policy.use_amp=true", "--steps=4", "--save_freq=2"]
    run = lerobot_train(*flags, *amp, f"--output_dir={tmp_path / 'run'}")
    assert {p.dtype for p in run.policy.spatial_forcing.pairs.parameters()} == {torch.float32}
    resumed = resume(tmp_path / "run" / "checkpoints" / "000002")
    for before, after in zip(run.curve[2:], resumed.curve, strict=True):
        assert after["action_loss"] == pytest.approx(before["action_loss"], rel=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_stay_equal(flags, tmp_path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = ["--policy.device=cuda", "--steps=3", f"--output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "RANK_FILE": str(tmp_path / "rank")}
    done = subprocess.run(
        [*launcher, str(WORKER), *flags, *run], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        torch.load(tmp_path / f"rank.{rank}", weights_only=True, map_location="cpu")["parameters"] for rank in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
