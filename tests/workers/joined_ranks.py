"""A loss outside the policy on two gloo processes under DDP: ``joined_ranks.py SCENARIOS_AS_JSON OUT``."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sfkit import SpatialForcing
from sfkit.testing.outside import OutsideAdapter, OutsidePolicy, loop_loss
from sfkit.testing.policies import tiny_batch
from sfkit.testing.teachers import PatchTeacher


def train(rank: int, join: str, skipped: str, options: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Gradients of three steps, and the parameters at the end."""
    torch.manual_seed(0)
    policy = OutsidePolicy()
    SpatialForcing.wrap(policy, PatchTeacher(), depth=2, join=join, adapter=OutsideAdapter(policy))
    parallel = DistributedDataParallel(policy, **options)
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    found = []
    for step in range(3):
        policy.spatial_forcing.enabled = not (step == 1 and skipped in ("everywhere", f"on rank {rank}"))
        batch = tiny_batch(seed=10 * step + rank)
        loss = loop_loss(parallel(batch), batch)
        if join == "add":
            loss = policy.spatial_forcing.add(loss)
        optimizer.zero_grad()
        loss.backward()
        # DDP's are views of its buckets.
        found.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        optimizer.step()
    return [*found, {name: parameter.detach() for name, parameter in policy.named_parameters()}]


def worker(rank: int, scenarios: list[tuple[str, str, dict[str, Any]]], out: str) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    torch.set_num_threads(1)
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    torch.save([train(rank, *scenario) for scenario in scenarios], f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
