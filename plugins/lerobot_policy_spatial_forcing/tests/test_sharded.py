"""FSDP2 as accelerate does it, where the trainer calls ``policy(batch)``: on two gloo processes, and on two GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "workers" / "sharded_ranks.py"
_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _GPUS])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(device: str, plain: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have written: ``rank.0.pt`` and ``rank.1.pt``, and the policy."""
    folder = tmp_path_factory.mktemp(f"sharded-{device}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [*launcher, str(WORKER), device, str(folder / "rank"), str(plain), str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank.{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(plain: Path, data: Path) -> tuple[Any, list[float]]:
    """The same training by one process, with the batches of both: the policy, and the norms of its gradients."""
    spec = importlib.util.spec_from_file_location("sharded_ranks", WORKER)
    worker = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(worker)
        policy = worker.build("cpu", str(plain), str(data))
    optimizer = torch.optim.SGD(policy.get_optim_params(), worker.RATE)
    norms = []
    for step in range(worker.STEPS):
        both = [worker.batch_of(policy, step, rank) for rank in (0, 1)]
        batch, noise = ({key: torch.cat([one[part][key] for one in both]) for key in both[0][part]} for part in (0, 1))
        loss, _ = policy(batch, **noise)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return policy, norms


def test_sharded_training_is_that_of_one_process(
    ranks: list[dict[str, Any]], alone: tuple[Any, list[float]], device: str
) -> None:
    policy, norms = alone
    near = {"rtol": 1e-3, "atol": 1e-4} if device == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    wanted = dict(policy.named_parameters())
    for rank in ranks:
        assert rank["parameters"].keys() == wanted.keys()
        for name, parameter in wanted.items():
            torch.testing.assert_close(
                rank["parameters"][name], parameter.detach(), **near, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert [step["norm"] for step in rank["losses"]] == pytest.approx(norms, rel=1e-3)
        for step in rank["losses"]:
            assert step["loss"] == pytest.approx(
                step["action_loss"] + step["sf_effective_weight"] * step["sf_loss"], rel=1e-4
            )
    assert ranks[0]["losses"] != ranks[1]["losses"]


def test_each_rank_holds_its_part(ranks: list[dict[str, Any]]) -> None:
    whole = sum(parameter.numel() for parameter in ranks[0]["parameters"].values())
    assert sum(rank["held"] for rank in ranks) == whole
    assert max(rank["held"] for rank in ranks) < 0.6 * whole


def test_fault_31_a_sharded_run_saves_whole_files(folder: Path, ranks: list[dict[str, Any]], make: Any) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    saved, expected = folder / "rank.0", ranks[0]["parameters"]
    assert json.loads((saved / "config.json").read_text())["type"] == "smolvla"
    state = SmolVLAPolicy.from_pretrained(
        saved, config=PreTrainedConfig.from_pretrained(saved), strict=True
    ).state_dict()
    stored = load_file(saved / "model.safetensors")
    assert not [key for key in stored if "spatial_forcing" in key]
    assert all(torch.equal(state[key].cpu(), expected[key]) for key in stored if key in expected)
    handle = make("sf_smolvla", pretrained_path=saved).spatial_forcing
    assert handle.steps == 3
    for name, parameter in handle.named_parameters():
        assert torch.equal(parameter, expected[f"spatial_forcing.{name}"])
    assert not (folder / "rank.1" / "spatial_forcing").exists()  # where several ranks are asked, one writes
