"""Processes that save policy and projector, both marked with the step, until they are killed: one for each input line.

A line is a folder. They are forks: importing torch takes longer than all that they do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sfkit import SpatialForcing
from sfkit.testing.tiny import TinyAdapter, TinyPolicy


class Saving(TinyPolicy):
    """Its weights hold the step, and are replaced at once, as frameworks do."""

    def save_pretrained(self, folder: str) -> None:
        save_file({"step": torch.tensor(self.steps)}, Path(folder) / "model.new")
        Path(folder, "model.new").replace(Path(folder) / "model.safetensors")


def save_on(folder: str) -> None:
    policy = Saving()
    policy.steps = 0
    SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    while True:
        policy.steps += 1
        policy.spatial_forcing.steps = policy.steps  # type: ignore[union-attr]
        policy.save_pretrained(folder)
        if policy.steps == 1:
            os.write(1, f"{os.getpid()}\n".encode())


# What the first wrap imports, the forks have.
SpatialForcing.wrap(first := TinyPolicy(), "geometry", adapter=TinyAdapter(first))
for line in sys.stdin:
    child = os.fork()
    if not child:
        save_on(line.strip())
    os.waitpid(child, 0)
