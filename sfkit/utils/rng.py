"""Keeping out of the global random state, so that a plain and a wrapped run from one seed stay paired."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_rng(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Run a block whose random draws leave torch's global generators as they were.

    Args:
        device: Also guard this device's generator.
        seed: Start the block from this seed.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
