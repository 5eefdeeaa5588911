"""Negatives of other ranks, on two processes of gloo."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfkit.objectives.pairwise import InfoNCEObjective, tokens_of_other_ranks
from sfkit.testing.checks import assert_rounded

WORKER = Path(__file__).parents[1] / "workers" / "gathering_ranks.py"


@pytest.mark.slow
def test_two_ranks_are_one_large_batch(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), str(tmp_path / "rank")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank.{rank}", weights_only=True) for rank in range(2)]
    parts = [runpy.run_path(str(WORKER), run_name="worker")["case"](rank) for rank in range(2)]
    student, teacher, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    whole = InfoNCEObjective({"negatives": "batch"})(student.requires_grad_(), teacher, mask)
    assert_rounded(torch.cat([rank["both"] for rank in ranks]), whole)
    whole.sum().backward()
    assert_rounded(torch.cat([rank["gradient"] for rank in ranks]), student.grad)
    alone = InfoNCEObjective({"negatives": "batch"})(*parts[0])
    assert_rounded(ranks[0]["alone"], alone)
    assert not torch.allclose(ranks[0]["both"], alone, atol=1e-3)


def test_a_single_process_has_no_others() -> None:
    assert tokens_of_other_ranks(torch.ones(3, 4)).shape == (0, 4)
    assert tokens_of_other_ranks(None).numel() == 0
    InfoNCEObjective({"negatives": "devices"}).participate_without_data()
