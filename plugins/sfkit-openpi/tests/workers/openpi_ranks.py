"""Two gloo processes with openpi's own DDP options: ``openpi_ranks.py OUT``."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_openpi import CAMERAS, tiny_observation, tiny_openpi
from torch.nn.parallel import DistributedDataParallel

from sfkit import SpatialForcing
from sfkit.testing.tiny import PatchTeacher

#: Cameras that are absent, for each rank.
BATCHES: dict[str, tuple[list[str], list[str]]] = {
    "one camera absent on a rank": ([], [CAMERAS[1]]),
    "nothing to align on a rank": ([], list(CAMERAS)),
}


def build() -> Any:
    torch.manual_seed(0)
    policy = tiny_openpi(pi05=True)
    policy.gradient_checkpointing_enable()
    return SpatialForcing.wrap(policy.train(), PatchTeacher(), student_layer=2)


def gradients(rank: int, missing: list[str], policy: Any, call: Any) -> dict[str, torch.Tensor]:
    batch = tiny_observation(seed=rank, missing=missing)
    torch.manual_seed(10 + rank)
    call(*batch).mean().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def compare(rank: int, static_graph: bool, batches: tuple[list[str], list[str]]) -> dict[str, Any]:
    """Relative error of DDP's gradients against the mean of those that each rank has alone."""
    policy = build()
    parallel = DistributedDataParallel(
        policy, find_unused_parameters=True, gradient_as_bucket_view=True, static_graph=static_graph
    )
    mine = gradients(rank, batches[rank], policy, parallel)
    wanted: dict[str, torch.Tensor] = {}
    for other, missing in enumerate(batches):
        alone = build()
        for name, gradient in gradients(other, missing, alone, alone).items():
            wanted[name] = wanted.get(name, 0) + gradient / 2
    errors = {
        part: float(
            torch.cat([(mine[n] - g).flatten() for n, g in wanted.items() if ("spatial_forcing" in n) is ours]).norm()
            / torch.cat([g.flatten() for n, g in wanted.items() if ("spatial_forcing" in n) is ours]).norm()
        )
        for part, ours in (("policy", False), ("projector", True))
    }
    return {"errors": errors, "gradients": mine}


def worker(rank: int, out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    found = {(what, static): compare(rank, static, batches) for what, batches in BATCHES.items() for static in (0, 1)}
    torch.save(found, f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (sys.argv[1],), nprocs=2, start_method="spawn")
