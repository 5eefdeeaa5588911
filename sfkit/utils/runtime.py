"""What torch does around a forward: other processes, a backward pass, a transform, random states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from sfkit.errors import GradientError


def is_distributed() -> bool:
    """True once ``torch.distributed`` runs: other ranks may then wait for what this one does."""
    return dist.is_available() and dist.is_initialized()


def is_recompute_forward() -> bool:
    """True where a forward runs again inside a backward pass, only to make again what autograd had saved.

    Non-reentrant activation checkpointing around the whole policy does that. Such a run must compute what the first
    one did, and leave no other trace. The reentrant kind is another matter: there, the first run was without gradient,
    and the one inside backward is the one that trains.
    """
    return _in_backward() and not _in_reentrant_checkpoint()


def trains_in_backward() -> bool:
    """True where a forward runs inside a backward pass as the one that trains: in a reentrant activation checkpoint."""
    return _in_backward() and _in_reentrant_checkpoint()


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _in_reentrant_checkpoint() -> bool:
    return "CheckpointFunction" in type(torch._C._current_autograd_node()).__name__


def refuse_transforms(policy: str) -> None:
    """Stop where a training forward is differentiated or vectorized by ``torch.func``.

    Raises:
        GradientError: It is.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise GradientError(
            f"{policy} was called inside a transform of torch.func (grad, vmap, jacrev, ...), where neither its taps "
            "nor its self-check can work.",
            "Train with loss.backward() or torch.autograd.grad (torch.func.functional_call is fine), or make this call "
            "under SpatialForcing.disabled(policy).",
        )


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
