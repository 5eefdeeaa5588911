"""Exchanging tokens between ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfkit.utils.runtime import is_distributed


@torch.no_grad()
def tokens_of_other_ranks(mine: Tensor | None) -> Tensor:
    """The tokens of all other ranks, without gradient; every rank must call this equally often.

    Args:
        mine: ``(n, d)`` of this rank, ``n`` may differ between ranks; None where this rank has nothing to give and
            needs nothing.

    Returns:
        ``(m, d)`` in the order of ranks; empty without ``torch.distributed``.
    """
    if mine is None:
        device = "cpu"
        if is_distributed() and dist.get_backend() == "nccl":
            device = f"cuda:{torch.cuda.current_device()}"
        mine = torch.zeros(0, 0, device=device)
    if not is_distributed():
        return mine.detach()[:0]
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, tuple(mine.shape))
    longest, width = max(n for n, _ in shapes), max(d for _, d in shapes)
    # Collectives want equal shapes.
    padded = mine.new_zeros(longest, width)
    if mine.numel():
        padded[: mine.shape[0]] = mine.detach()
    everybody = [torch.empty_like(padded) for _ in shapes]
    if padded.numel():
        dist.all_gather(everybody, padded)
    found = [tokens[:n] for tokens, (n, _) in zip(everybody, shapes, strict=True)]
    return torch.cat([padded[:0], *(tokens for rank, tokens in enumerate(found) if rank != dist.get_rank())])
