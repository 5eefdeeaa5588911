"""The real Trainer on two gloo processes: ``trainer_ranks.py FOLDER``."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import test_trainer as tests

from sfkit.errors import LossError


def worker(rank: int, out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # What a launcher would set, and accelerate asks for.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
    limit = timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2, timeout=limit)
    for average in (True, False):
        policy = tests.wrapped_policy()
        tests.train(policy, Path(out, "run"), 1, 2, steps=1, average_tokens_across_devices=average)
        parameters = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
        save_file(parameters, f"{out}/{average}.{rank}.safetensors")
    try:
        tests.train(tests.wrapped_policy(grad_accumulation=2), Path(out, "run"), 1, 2, callback=False)
    except LossError as error:
        Path(out, f"{rank}.txt").write_text(str(error))
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    # Forked, as transformers takes long to import; nothing has run yet that a fork could harm.
    mp.start_processes(worker, (sys.argv[1],), nprocs=2, start_method="fork")
