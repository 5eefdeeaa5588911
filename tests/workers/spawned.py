"""Hands a wrapped policy to a spawned worker, which prints the losses of one step: ``spawned.py FILE``."""

from __future__ import annotations

import json
import sys

import torch
import torch.multiprocessing as mp
from torch import nn

from sfkit.testing.tiny import tiny_batch


def worker(policy: nn.Module) -> None:
    torch.manual_seed(3)
    loss, info = policy(tiny_batch(seed=3))
    print(json.dumps([loss.item(), info["sf_loss"]]))


if __name__ == "__main__":
    process = mp.get_context("spawn").Process(target=worker, args=(torch.load(sys.argv[1], weights_only=False),))
    process.start()
    process.join()
    sys.exit(process.exitcode)
