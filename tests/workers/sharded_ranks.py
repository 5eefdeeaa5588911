"""Trains a tiny policy under FSDP2 on two gloo processes: ``sharded_ranks.py SCHEDULES_AS_JSON OUT``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, WrapError
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

#: On the first rank; the others get nothing.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Saved(TinyPolicy):
    """Saves what it has, as LeRobot's policies do from 0.6.2 on: all ranks gather, one writes."""

    def save_pretrained(self, directory: str, *, state_dict: Any = None) -> None:
        state = get_model_state_dict(self, options=WHOLE) if state_dict is None else state_dict
        if state:
            Path(directory).mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in state.items()}, f"{directory}/model.safetensors")


def train(rank: int, schedule: str, out: str) -> dict[str, Any]:
    torch.manual_seed(0)
    policy = Saved()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, schedule=schedule, adapter=TinyAdapter(policy))
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
    runs = policy.spatial_forcing.status().teacher_runs
    save(policy, rank, f"{out}.{schedule}")
    parameters = {name: parameter.full_tensor().detach() for name, parameter in policy.named_parameters()}
    return {
        "parameters": parameters,
        "losses": losses,
        "runs": runs,
        "warned": [str(warning.message) for warning in warned],
        "held": sum(parameter.to_local().numel() for parameter in policy.parameters()),
    }


def save(policy: Any, rank: int, folder: str) -> None:
    """By all ranks, and by the first alone, with what all have gathered; then go on."""
    policy.save_pretrained(f"{folder}.by-all")
    gathered = get_model_state_dict(policy, options=WHOLE)
    if rank == 0:
        policy.save_pretrained(f"{folder}.by-one", state_dict=gathered)
    SpatialForcing.export(policy, f"{folder}.exported")
    policy_step(policy, torch.optim.SGD(policy.parameters(), 0.0), tiny_batch())


def refusals() -> dict[str, str]:
    """What is refused under FSDP2, and in which words."""
    policy, mesh = TinyPolicy(), init_device_mesh("cpu", (2,))
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=False)
    fully_shard(policy, mesh=mesh, mp_policy=half)
    said = {}
    try:
        SpatialForcing.unwrap(policy)
    except WrapError as error:
        said["unwrap"] = str(error)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            policy(tiny_batch())
    except ConfigError as error:
        said["cast"] = str(error)
    policy = TinyPolicy()
    attention = {"objective": "attention", "teacher_layer": 2, "student_layer": 1}
    SpatialForcing.wrap(policy, PatchTeacher(), adapter=TinyAdapter(policy), **attention)
    fully_shard(policy.spatial_forcing, mesh=mesh)
    fully_shard(policy, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    try:
        policy(tiny_batch())
    except ConfigError as error:
        said["attention"] = str(error)
    policy = TinyPolicy()
    fully_shard(policy, mesh=mesh)
    try:
        SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    except WrapError as error:
        said["wrap"] = str(error)
    return said


def policy_step(policy: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    loss, logs = policy(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss, logs


def worker(rank: int, schedules: list[str], out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must end before whoever waits for both.
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    found = {schedule: train(rank, schedule, out) for schedule in schedules}
    torch.save({**found, "refusals": refusals()}, f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
