"""Schedules and balance on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "workers" / "weighted_ranks.py"
CONFLICT = {"name": "conflict", "below": 1.0, "patience": 2, "interval": 1}
SCENARIOS: list[dict[str, Any]] = [
    {"schedule": ["every:2", "stop:5"]},
    {"weight": "balance:0.1"},
    {"weight": "balance:0.1", "schedule": [CONFLICT]},
    {"health": {"every": 3}},
    {"objective": {"name": "info-nce", "negatives": "devices"}},
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of the two ranks had at the end of each scenario."""
    out = tmp_path_factory.mktemp("ranks") / "rank"
    command = [sys.executable, str(WORKER), json.dumps(SCENARIOS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("index", range(len(SCENARIOS)))
def test_fault_32_ranks_agree_on_step_weight_and_parameters(ranks: Any, index: int) -> None:
    one, two = (rank[index] for rank in ranks)
    assert one["steps"] == two["steps"] == 8, "a rank that sits out counts as well"
    both = [pair for pair in zip(one["weights"], two["weights"], strict=True) if None not in pair]
    assert len(both) >= 5
    assert all(a == b for a, b in both)
    assert one["state"].keys() == two["state"].keys()
    for key in one["state"]:
        assert torch.equal(one["state"][key], two["state"][key]), key
    for name, value in one["parameters"].items():
        assert torch.equal(value, two["parameters"][name]), f"{name} differs between ranks"


def test_both_ranks_follow_the_schedule_and_free_teachers(ranks: Any) -> None:
    assert ranks[0][0]["weights"] == [0.5, 0, 0.5, 0, 0.5, 0, 0, 0]
    assert [rank[0]["loaded"] for rank in ranks] == [[False], [False]]


def test_the_balance_moves_and_a_conflict_ends_it_on_both_ranks(ranks: Any) -> None:
    weights = ranks[0][1]["weights"]
    assert weights[0] == pytest.approx(0.1)
    assert len(set(weights)) > 3
    for rank in ranks:
        assert rank[2]["state"]["schedule.0.conflict.stopped"] == 1
        assert rank[2]["loaded"] == [False]


def test_the_balance_costs_one_small_reduction_a_step(ranks: Any) -> None:
    for rank in ranks:
        assert len(rank[0]["reduced"]) == 1, "a plain weight needs none: it is the monitor's, at step 0"
        assert 5 <= len(rank[1]["reduced"]) <= 8, "eight steps"
        assert max(rank[1]["reduced"]) <= 4, "numbers, for one tapped layer"
        assert len(rank[3]["reduced"]) == 3, "the monitor measures at steps 0, 3 and 6"


def test_the_gradients_in_the_report_are_those_of_both_ranks(ranks: Any) -> None:
    one, two = (rank[3]["health"] for rank in ranks)
    assert one["step"] == two["step"] == 6
    assert one["ratio"] == two["ratio"] > 0
    assert one["pairs"][0]["cosine"] != two["pairs"][0]["cosine"], "of each rank's own tokens"
