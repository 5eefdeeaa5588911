"""FSDP2 on two gloo processes: the handle is sharded first, then the policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfkit import SpatialForcing
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch

WORKER = Path(__file__).parent / "workers" / "sharded_ranks.py"
SCHEDULES = ("constant", "every:2")

fsdp = pytest.importorskip("torch.distributed.fsdp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="FSDP2 came later than this torch"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    out = folder / "rank"
    command = [sys.executable, str(WORKER), json.dumps(SCHEDULES), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sharded_training_matches_one_process(ranks: list[dict[str, Any]], schedule: str) -> None:
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, schedule=schedule, adapter=TinyAdapter(policy))
    first = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for step in range(4):
        both = [tiny_batch(seed=10 * step + rank) for rank in range(2)]
        loss, _ = policy({key: torch.cat([part[key] for part in both]) for key in both[0]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for rank in ranks:
        found = rank[schedule]["parameters"]
        assert found.keys() == dict(policy.named_parameters()).keys()
        assert_rounded(found, dict(policy.named_parameters()))
        moved = [name for name in found if not torch.equal(found[name], first[name])]
        assert any(name.startswith("spatial_forcing.") for name in moved)


def test_each_rank_holds_its_part(ranks: list[dict[str, Any]]) -> None:
    whole = sum(parameter.numel() for parameter in ranks[0]["constant"]["parameters"].values())
    assert sum(rank["constant"]["held"] for rank in ranks) == whole


@pytest.mark.parametrize("way", ["by-all", "by-one"])
def test_fault_31_a_sharded_policy_saves_a_whole_projector(ranks: list[dict[str, Any]], folder: Path, way: str) -> None:
    saved = folder / f"rank.constant.{way}"
    expected = ranks[0]["constant"]["parameters"]
    plain, exported = (load_file(part / "model.safetensors") for part in (saved, folder / "rank.constant.exported"))
    assert plain.keys() == exported.keys() == dict(TinyPolicy().named_parameters()).keys()
    assert all(torch.equal(plain[name], expected[name]) for name in plain)
    assert not (folder / "rank.constant.exported" / "spatial_forcing").exists()
    policy = TinyPolicy()
    SpatialForcing.from_pretrained(policy, saved, adapter=TinyAdapter(policy))
    handle = policy.spatial_forcing
    assert handle.steps == 4
    for name, parameter in handle.named_parameters():
        assert torch.equal(parameter, expected[f"spatial_forcing.{name}"])


def test_fault_52_casting_and_unwrapping_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "makes bfloat16 of the projector" in rank["refusals"]["cast"]
        assert "fully_shard(policy.spatial_forcing) first" in rank["refusals"]["cast"]
        assert "has scattered the parameters of this TinyPolicy" in rank["refusals"]["unwrap"]


def test_a_schedule_rests_and_an_unchecked_gradient_is_logged(ranks: list[dict[str, Any]]) -> None:
    assert [loss is not None for loss in ranks[0]["every:2"]["losses"]] == [True, False, True, False]
    assert ranks[0]["every:2"]["runs"] == 2
    assert any("could not verify the gradient path" in message for message in ranks[0]["constant"]["warned"])


def test_what_is_sharded_already_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "already inside FSDP2 (fully_shard)" in rank["refusals"]["wrap"]
        assert "SpatialForcing.wrap second" in rank["refusals"]["wrap"]


def test_attention_under_fsdp2_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "where FSDP2 has scattered their weights" in rank["refusals"]["attention"]
        assert "Train with DDP, or choose an objective that reads features" in rank["refusals"]["attention"]
