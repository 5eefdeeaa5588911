"""``torchrun --nproc-per-node=2`` on the CPU: the ranks stay equal, and what is logged is of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "workers" / "two_ranks.py"


@pytest.fixture(scope="module")
def ranks(common, shape, aligned, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    unclipped = "--policy.optimizer_grad_clip_norm=1e6"
    flags = [*common, *shape, *aligned, unclipped, "--steps=3", f"--output_dir={folder / 'run'}"]
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "RANK_FILE": str(folder / "rank"),
    }  # fmt: skip
    done = subprocess.run(
        [*launcher, str(WORKER), *flags], env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "run/checkpoints/last/pretrained_model/spatial_forcing/projector.safetensors").is_file()
    return [torch.load(folder / f"rank.{rank}", weights_only=True) for rank in (0, 1)]


def test_fault_11_parameters_are_equal_on_both_ranks(ranks) -> None:
    first, second = (rank["parameters"] for rank in ranks)
    assert any("spatial_forcing" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fault_11_gradients_of_the_projector_are_averaged(ranks) -> None:
    assert len(ranks[0]["gradients"]) == 3
    for step in range(3):
        first, second = (rank["local"][step] for rank in ranks)
        assert not torch.allclose(first, second)
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][step], (first + second) / 2)


def test_fault_32_the_step_counter_is_the_same_on_both_ranks(ranks) -> None:
    assert [rank["steps"] for rank in ranks] == [3, 3]


def test_logged_figures_are_those_of_both_ranks(ranks) -> None:
    for step in range(3):
        for key in ("action_loss", "sf_loss", "sf_cosine"):
            own = [rank["own"][step][key] for rank in ranks]
            assert own[0] != own[1]
            assert ranks[0]["logged"][step][key] == pytest.approx(sum(own) / 2, rel=1e-4, abs=1e-6)
