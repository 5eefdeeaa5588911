"""Two processes on gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.gradients import GradientSums

WORKER = Path(__file__).parent / "workers" / "two_ranks.py"
SCENARIOS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"find_unused_parameters": True}),
    ("plain", {"static_graph": True}),
    ("skipped on a step", {}),
    ("skipped on one rank", {}),
    ("masked on one rank", {}),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks had at the end of each scenario."""
    out = tmp_path_factory.mktemp("ranks") / "rank"
    command = [sys.executable, str(WORKER), json.dumps(SCENARIOS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("scenario", [f"{name} {options}" for name, options in SCENARIOS])
def test_fault_49_ranks_stay_equal(ranks: list[dict[str, Any]], scenario: str) -> None:
    one, two = (rank[scenario] for rank in ranks)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), f"{name} differs between ranks"
    torch.manual_seed(0)
    assert not torch.equal(one["head.weight"], TinyPolicy().head.weight)


def test_ddp_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert "already inside DDP" in ranks[0]["refusal"]


def test_fault_44_health_is_that_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["measured"] for rank in ranks)
    # The measurement under way is this rank's alone, so the last finished one is reported: that of step 2 of 0 to 3.
    assert one["step"] == two["step"] == 2
    sums = GradientSums.of(one["table"] + two["table"])
    for found in (one, two):
        assert_rounded(torch.tensor(found["ratio"]), sums.ratio)
        assert_rounded(torch.tensor(found["cosine"]), sums.cosine)
    assert abs(GradientSums.of(one["table"]).ratio / sums.ratio - 1) > 1e-3  # each rank alone has another
    assert any("gradient" in message for message in one["said"])
    assert two["said"] == []


@pytest.mark.parametrize("options", [options for name, options in SCENARIOS if name == "plain"])
def test_gradients_are_the_mean_of_the_ranks(ranks: list[dict[str, Any]], options: dict[str, Any]) -> None:
    one = ranks[0][f"plain {options}"]
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy))
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for step in range(4):
        both = [tiny_batch(seed=10 * step + rank) for rank in range(2)]
        batch = {key: torch.cat([part[key] for part in both]) for key in both[0]}
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parameters = dict(policy.named_parameters())
    assert_rounded({name: one[name] for name in parameters}, parameters)
