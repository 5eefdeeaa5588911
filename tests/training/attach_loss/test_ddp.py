"""Losses outside and inside the policy under DDP, on two processes."""

from __future__ import annotations

import itertools
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit.testing.tiny import loop_loss

WORKER = Path(__file__).parents[2] / "workers" / "joined_ranks.py"
OPTIONS: list[dict[str, Any]] = [{}, {"find_unused_parameters": True}, {"static_graph": True}]
ATTACH = ("auto", "manual", "return")
SKIPPED = ("nowhere", "everywhere", "on rank 1")
#: How the alignment joins, where it is left out in the second step, batches of a step, and DDP's options.
SCENARIOS = [
    *((attach_loss, skipped, 1, options) for attach_loss in ATTACH for skipped in SKIPPED for options in OPTIONS),
    *((attach_loss, "nowhere", 2, options) for attach_loss in ATTACH for options in OPTIONS[:2]),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each of the two ranks found in each scenario."""
    out = tmp_path_factory.mktemp("ranks") / "rank"
    command = [sys.executable, str(WORKER), json.dumps(SCENARIOS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("index", range(len(SCENARIOS)), ids=[" ".join(map(str, s)) for s in SCENARIOS])
def test_fault_12_and_49_gradients_are_the_mean_of_the_ranks(
    index: int, ranks: Any, by_hand: Callable[..., Any], same: Callable[..., None]
) -> None:
    attach_loss, skipped, parts, _ = SCENARIOS[index]
    script = runpy.run_path(str(WORKER))
    policy = script["build"](attach_loss)
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for step, (one, two) in enumerate(zip(*(rank[index][:3] for rank in ranks), strict=True)):
        optimizer.zero_grad()
        for rank, part in itertools.product(range(2), range(parts)):
            batch = script["batch_of"](rank, step, part)
            output, alignment = by_hand(policy, batch)
            skips = step == 1 and skipped in ("everywhere", f"on rank {rank}")
            action = output[0] if attach_loss == "return" else loop_loss(output, batch)
            ((action + (0 if skips else 1) * alignment) / (2 * parts)).backward()
        assert all(torch.equal(gradient, two[name]) for name, gradient in one.items()), "the ranks differ"
        same(one, {name: parameter.grad for name, parameter in policy.named_parameters()})
        optimizer.step()
    same(ranks[0][index][3], dict(policy.named_parameters()))
