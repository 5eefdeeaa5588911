"""Trains a tiny policy under FSDP2 on two gloo processes: ``sharded_ranks.py SCHEDULES_AS_JSON OUT``."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sfkit import SpatialForcing
from sfkit.errors import WrapError
from sfkit.testing.policies import TinyAdapter, TinyPolicy, tiny_batch


def train(rank: int, schedule: str) -> dict[str, Any]:
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", depth=2, schedule=schedule, adapter=TinyAdapter(policy))
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(policy.spatial_forcing, mesh=mesh)
    fully_shard(policy, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    losses = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(4):
            _, logs = policy_step(policy, optimizer, tiny_batch(seed=10 * step + rank))
            losses.append(logs.get("sf_loss"))
    parameters = {name: parameter.full_tensor().detach() for name, parameter in policy.named_parameters()}
    return {
        "parameters": parameters,
        "losses": losses,
        "runs": policy.spatial_forcing.status().teacher_runs,
        "warned": [str(warning.message) for warning in warned],
        "held": sum(parameter.to_local().numel() for parameter in policy.parameters()),
    }


def policy_step(policy: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    loss, logs = policy(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss, logs


def refusal() -> str:
    policy = TinyPolicy()
    fully_shard(policy, mesh=init_device_mesh("cpu", (2,)))
    try:
        SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    except WrapError as error:
        return str(error)
    return ""


def worker(rank: int, schedules: list[str], out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must end before whoever waits for both.
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    results: dict[str, Any] = {schedule: train(rank, schedule) for schedule in schedules}
    torch.save(results | {"refusal": refusal()}, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
