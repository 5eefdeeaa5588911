"""Small policies under DistributedDataParallel, on two processes with gloo."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from recording import Training, record_case, timed
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


def parallel(
    *, ddp: Any = None, skips: Callable[[int, int], bool] | None = None, outside: bool = False, **wrap: Any
) -> Training:
    """One process's part; ``skips(rank, step)``: where it does not align."""
    plain = OutsidePolicy() if outside else TinyPolicy()
    adapter = OutsideAdapter(plain) if outside else TinyAdapter(plain)
    wrap = wrap if "pairs" in wrap else {"teacher": "geometry", "student_layer": 2, **wrap}
    SpatialForcing.wrap(plain, adapter=adapter, **wrap)
    model, rank = DistributedDataParallel(plain, **(ddp or {})), dist.get_rank()

    def loss(step: int) -> torch.Tensor:
        batch = tiny_batch(seed=10 * step + rank)
        plain.spatial_forcing.enabled = not (skips and skips(rank, step))
        output = model(batch)
        return loop_loss(output, batch) if outside else output[0]

    return Training(plain, loss)


def three() -> Any:
    teacher = PatchTeacher()
    return [(1, teacher, 1, 0.5), (2, teacher, 2), (3, "geometry")]


CASES: dict[str, Callable[[], Training]] = {
    "ranks/plain": parallel,
    "ranks/unused parameters": lambda: parallel(ddp={"find_unused_parameters": True}),
    "ranks/static graph": lambda: parallel(ddp={"static_graph": True}),
    "ranks/one skips": lambda: parallel(skips=lambda rank, step: rank == 1 and step % 4 == 2),
    "ranks/both skip": lambda: parallel(skips=lambda rank, step: step % 4 == 0),
    "ranks/pairs": lambda: parallel(pairs=three(), health={"every": 5}),
    "ranks/balance": lambda: parallel(weight="balance:0.3", schedule=("linear", {"steps": 20})),
    "ranks/conflict": lambda: parallel(schedule=("conflict", {"below": 1.0, "patience": 3, "interval": 2})),
    "ranks/info-nce": lambda: parallel(teacher=PatchTeacher(), objective=("info-nce", {"negatives": "devices"})),
    "ranks/backward": lambda: parallel(outside=True, attach_loss="backward"),
}


def record(names: Sequence[str], cases: Any, steps: int) -> dict[str, Any]:
    """Each case as both processes saw it."""
    with tempfile.TemporaryDirectory() as folder:
        # A case leaves its names to the processes, which have their own copy of the functions.
        mp.start_processes(_work, (list(names), steps, folder), nprocs=2, start_method="spawn")
        parts = []
        for rank in range(2):
            with open(f"{folder}/{rank}.json") as file:  # noqa: PTH123
                parts.append(json.load(file))
    return {f"{name}, process {rank}": parts[rank][name] for name in names for rank in range(2)}


def _work(rank: int, names: list[str], steps: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    found = {}
    for name in names:
        one = (
            record_case(CASES[name], steps) if rank else timed(name, lambda name=name: record_case(CASES[name], steps))
        )
        found[name] = one
    with open(f"{folder}/{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(found, file)
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other process has left
