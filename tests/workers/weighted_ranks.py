"""Trains tiny policies, weighted in several ways, on two gloo processes: ``weighted_ranks.py SCENARIOS OUT``."""

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
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch


def train(rank: int, arguments: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy), **arguments)
    parallel = DistributedDataParallel(policy)
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    weights, reduced = [], []
    reduce = dist.all_reduce
    # DDP's own reductions are not called from Python.
    dist.all_reduce = lambda tensor, *rest, **more: reduced.append(tensor.numel()) or reduce(tensor, *rest, **more)
    for step in range(8):
        # Rank 1 sits out, at steps of the schedule and between them.
        policy.spatial_forcing.enabled = not (rank == 1 and step in (1, 4))
        loss, info = parallel(tiny_batch(seed=10 * step + rank))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(info.get("sf_effective_weight"))
    dist.all_reduce = reduce
    handle = policy.spatial_forcing
    return {
        "reduced": reduced,
        "weights": weights,
        "steps": handle.steps,
        "state": {key: value for key, value in handle.state_dict().items() if key.startswith(("balance", "schedule"))},
        "parameters": {name: parameter.detach() for name, parameter in policy.named_parameters()},
        "health": handle.health().as_dict(),
        "loaded": [host._model is not None or host._loaded for host in handle.runners],
    }


def worker(rank: int, scenarios: list[dict[str, Any]], out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must end before whoever waits for both.
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    torch.save([train(rank, arguments) for arguments in scenarios], f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
