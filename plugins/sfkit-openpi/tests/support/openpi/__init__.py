"""A small stand-in for the PyTorch policies of openpi (pi0 and pi0.5), for tests without openpi.

It keeps what an adapter can trip over: names and paths of modules, which of them are called and which are not, forced
activation checkpointing, pictures that are augmented inside forward, and a loss for each element. Each of these is
named with the upstream file (of Physical-Intelligence/openpi at 15a9616) that does so. Sizes, attention heads and
inference are its own.
"""

from __future__ import annotations

from sfkit.testing.openpi.data import CAMERAS, Observation, tiny_observation
from sfkit.testing.openpi.model import PI0Pytorch, TinyConfig

__all__ = ["CAMERAS", "Observation", "PI0Pytorch", "TinyConfig", "tiny_observation"]
