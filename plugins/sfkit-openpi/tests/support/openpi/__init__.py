"""A small stand-in for the PyTorch policies of openpi (pi0 and pi0.5), for tests without openpi.

Its modules have openpi's names. It keeps what an adapter can trip over: names and paths of modules, which of them are
called and which are not, forced activation checkpointing, images that are augmented inside forward, and a loss for
each element. Each file stands for the upstream file of that name (of Physical-Intelligence/openpi at 15a9616). Sizes,
attention heads and inference are its own.
"""

from __future__ import annotations

#: What openpi itself does not have.
STANDIN = True
