"""The state of torch around a forward: other processes, a backward pass, a transform, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from sfkit.errors import GradientError


def is_distributed() -> bool:
    """True once ``torch.distributed`` runs: other ranks may then wait for a collective of this one."""
    return dist.is_available() and dist.is_initialized()


def is_recompute_forward() -> bool:
    """True where a forward runs again inside a backward pass, only to recompute tensors that autograd needs.

    Non-reentrant activation checkpointing of the whole policy does that. The second run must compute the same as the
    first one and have no other effect. In reentrant checkpointing the first run has no gradient, and the second one
    trains: see :func:`trains_in_backward`.
    """
    return _in_backward() and not _in_reentrant_checkpoint()


def trains_in_backward() -> bool:
    """True where the forward that trains runs inside a backward pass: in reentrant activation checkpointing."""
    return _in_backward() and _in_reentrant_checkpoint()


# torch has no public function for these two questions. Their tests run under the oldest and the newest release.
def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _in_reentrant_checkpoint() -> bool:
    return "CheckpointFunction" in type(torch._C._current_autograd_node()).__name__


def refuse_transforms(policy: str) -> None:
    """Refuse a training forward inside a transform of ``torch.func``.

    Args:
        policy: The policy's name, for the error.

    Raises:
        GradientError: A transform differentiates or vectorizes the forward.
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

    A plain and a wrapped run from one seed thus draw the same numbers.

    Args:
        device: A CUDA device whose generator is guarded too.
        seed: The block's own seed; without one it goes on from the global state.
    """
    # Without a list, fork_rng saves the state of every GPU.
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make new tensors and modules in float32 within the block, whatever ``torch.set_default_dtype`` was given."""
    # Read from a tensor: sfkit.testing.checks.float64 makes float64 of the float32 that the code names.
    precision, before = torch.empty(0, dtype=torch.float32, device="cpu").dtype, torch.get_default_dtype()
    if before == precision:
        yield
        return
    torch.set_default_dtype(precision)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's ``fully_shard`` was applied; recognized by name, as older torch has no such class."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)
