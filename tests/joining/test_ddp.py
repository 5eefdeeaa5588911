"""A loss outside the policy under DDP, on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.testing.outside import OutsideAdapter, OutsidePolicy, loop_loss
from sfkit.testing.policies import tiny_batch
from sfkit.testing.teachers import PatchTeacher

WORKER = Path(__file__).parents[1] / "workers" / "joined_ranks.py"
OPTIONS: list[dict[str, Any]] = [{}, {"find_unused_parameters": True}, {"static_graph": True}]
SCENARIOS = [
    *((join, "nowhere", options) for join in ("auto", "add") for options in OPTIONS),
    *((join, skipped, {}) for join in ("auto", "add") for skipped in ("everywhere", "on rank 1")),
    ("auto", "on rank 1", {"find_unused_parameters": True}),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each of the two ranks found in each scenario."""
    out = tmp_path_factory.mktemp("ranks") / "rank"
    command = [sys.executable, str(WORKER), json.dumps(SCENARIOS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("index", range(len(SCENARIOS)), ids=[" ".join(map(str, s)) for s in SCENARIOS])
def test_fault_12_and_49_gradients_are_the_mean_of_the_ranks(
    index: int, ranks: Any, by_hand: Callable[..., Any]
) -> None:
    _, skipped, _ = SCENARIOS[index]
    torch.manual_seed(0)
    policy = OutsidePolicy()
    SpatialForcing.wrap(policy, PatchTeacher(), depth=2, adapter=OutsideAdapter(policy))
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for step, (one, two) in enumerate(zip(*(rank[index][:3] for rank in ranks), strict=True)):
        optimizer.zero_grad()
        for rank in range(2):
            batch = tiny_batch(seed=10 * step + rank)
            output, alignment = by_hand(policy, batch)
            skips = step == 1 and skipped in ("everywhere", f"on rank {rank}")
            ((loop_loss(output, batch) + (0 if skips else 1) * alignment) / 2).backward()
        for name, parameter in policy.named_parameters():
            assert torch.equal(one[name], two[name]), f"{name} differs between ranks"
            assert torch.allclose(one[name], parameter.grad, rtol=1e-4, atol=1e-6), f"{name} at step {step}"
        optimizer.step()
    for name, parameter in policy.named_parameters():
        assert torch.allclose(ranks[0][index][3][name], parameter, rtol=1e-4, atol=1e-6), name
