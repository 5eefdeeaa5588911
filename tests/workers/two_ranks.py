"""Trains a tiny policy on two gloo processes: ``two_ranks.py SCENARIOS_AS_JSON OUT``.

A script of its own, because spawned processes import their main module by its path.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sfkit import SpatialForcing
from sfkit.errors import WrapError
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch


def batch_of(rank: int, step: int, scenario: str) -> dict[str, torch.Tensor]:
    batch = tiny_batch(seed=10 * step + rank)
    if scenario == "masked on one rank" and rank == 1:
        batch["present"] = torch.zeros(2, 2, dtype=torch.bool)
    return batch


def train(rank: int, scenario: str, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy))
    parallel = DistributedDataParallel(policy, **options)
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    for step in range(4):
        skipping = {"skipped on a step": True, "skipped on one rank": rank == 1}.get(scenario, False)
        # The first step included: a rank that sits out there does not even know the shapes.
        policy.spatial_forcing.enabled = not (skipping and step in (0, 2))
        loss, _ = parallel(batch_of(rank, step, scenario))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher = policy.spatial_forcing.runners[0].teacher.state()
    state = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    return state | {f"teacher.{key}": value for key, value in teacher.items()}


def measured(rank: int) -> dict[str, Any]:
    """What each rank says of health; within the loop the second one asks alone."""
    torch.manual_seed(0)
    policy = TinyPolicy()
    limits = {"every": 1, "patience": 1, "max_grad_ratio": 1e-6}
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy), health=limits)
    handle: Any = policy.spatial_forcing
    parallel = DistributedDataParallel(policy)
    said, own = [], []
    handle.warn_with(said.append)
    for step in range(4):
        loss, _ = parallel(batch_of(rank, step, ""))
        loss.backward()
        table = handle.weighting.meter.table
        own.append(None if table is None else table.clone())
        if rank:  # a collective in here would wait for the first rank
            handle.health()
    found = handle.health()
    return {"table": own[-2], "ratio": found.ratio, "cosine": found.cosine, "step": found.step, "said": said}


def refusal(policy: Any) -> str:
    try:
        SpatialForcing.wrap(policy, "geometry")
    except WrapError as error:
        return str(error)
    return ""


def worker(rank: int, scenarios: list[tuple[str, dict[str, Any]]], out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must end before whoever waits for both.
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    results: dict[str, Any] = {f"{name} {options}": train(rank, name, options) for name, options in scenarios}
    results["measured"] = measured(rank)
    results["refusal"] = refusal(DistributedDataParallel(TinyPolicy()))
    torch.save(results, f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
