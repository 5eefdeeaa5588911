"""Losses outside and inside the policy on two gloo processes under DDP: ``joined_ranks.py SCENARIOS_AS_JSON OUT``."""

from __future__ import annotations

import contextlib
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
from sfkit.testing.tiny import (
    OutsideAdapter,
    OutsidePolicy,
    PatchTeacher,
    TinyAdapter,
    TinyPolicy,
    loop_loss,
    tiny_batch,
)


def build(attach_loss: str, **options: Any) -> Any:
    """In float64, always with the same weights; ``attach_loss="return"`` is a policy that returns its loss."""
    torch.manual_seed(0)
    inside = attach_loss == "return"
    policy = (TinyPolicy() if inside else OutsidePolicy()).double()
    adapter = TinyAdapter(policy) if inside else OutsideAdapter(policy)
    return SpatialForcing.wrap(
        policy, PatchTeacher(), student_layer=2, attach_loss=attach_loss, adapter=adapter, **options
    )


def batch_of(rank: int, step: int, part: int) -> dict[str, torch.Tensor]:
    batch = tiny_batch(seed=100 * step + 10 * part + rank, geometry=False)
    return {key: value.double() for key, value in batch.items()}


def backward(parallel: Any, policy: Any, attach_loss: str, batch: dict[str, torch.Tensor], parts: int) -> None:
    output = parallel(batch)
    loss = output[0] if attach_loss == "return" else loop_loss(output, batch)
    if attach_loss == "manual":
        loss = policy.spatial_forcing.add(loss)
    (loss / parts).backward()


def train(
    rank: int, attach_loss: str, skipped: str, parts: int, options: dict[str, Any]
) -> list[dict[str, torch.Tensor]]:
    """Gradients of three steps, and the parameters at the end."""
    policy = build(attach_loss, grad_accumulation=parts)
    parallel = DistributedDataParallel(policy, **options)
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    found = []
    for step in range(3):
        policy.spatial_forcing.enabled = not (step == 1 and skipped in ("everywhere", f"on rank {rank}"))
        optimizer.zero_grad()
        for part in range(parts):
            with contextlib.nullcontext() if part == parts - 1 else parallel.no_sync():
                backward(parallel, policy, attach_loss, batch_of(rank, step, part), parts)
        # DDP's are views of its buckets.
        found.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        optimizer.step()
    return [*found, {name: parameter.detach() for name, parameter in policy.named_parameters()}]


def worker(rank: int, scenarios: list[tuple[str, str, int, dict[str, Any]]], out: str) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    torch.set_num_threads(1)
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    torch.save([train(rank, *scenario) for scenario in scenarios], f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (json.loads(sys.argv[1]), sys.argv[2]), nprocs=2, start_method="spawn")
