"""InfoNCE with negatives of two gloo processes: ``gathering_ranks.py OUT``.

A script of its own, because spawned processes import their main module by its path.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sfkit.objectives.pairwise import InfoNCEObjective


def case(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two samples on the first rank, one on the second; some tokens masked."""
    g = torch.Generator().manual_seed(rank)
    shape = (2 - rank, 1, 2, 3)
    student, teacher = (torch.randn(*shape, 5, generator=g) for _ in range(2))
    return student, teacher, torch.rand(*shape, generator=g) > 0.4


def worker(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must end before whoever waits for both.
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=2, timeout=limit)
    objective = InfoNCEObjective({"negatives": "devices"})
    student, *rest = case(rank)
    both = objective(student.requires_grad_(), *rest)
    both.sum().backward()
    # Then the second rank sits out, and afterward both.
    alone = objective(*case(rank)) if rank == 0 else objective.participate_without_data()
    objective.participate_without_data()
    torch.save({"both": both.detach(), "gradient": student.grad, "alone": alone}, f"{out}.{rank}")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    mp.start_processes(worker, (sys.argv[1],), nprocs=2, start_method="spawn")
