"""Activation recomputation: backward computes cheap tensors again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

_in_scope: ContextVar[bool] = ContextVar("sfkit_recompute_scope", default=False)


@contextmanager
def recompute_scope(on: bool = True) -> Iterator[None]:
    """Within the block, :func:`recompute` keeps inputs alone for backward."""
    token = _in_scope.set(on)
    try:
        yield
    finally:
        _in_scope.reset(token)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``; within :func:`recompute_scope` it keeps ``x`` alone, and backward recomputes the rest.

    Backward recomputes up to the last matrix product, without the product: torch stops once it has all that it needs.
    A norm or an activation before a product thus costs itself once more, and the product nothing.

    Args:
        function: Deterministic; it draws no random number.
        x: Its input ``(*)``.
    """
    if not (_in_scope.get() and torch.is_grad_enabled()):
        return function(x)
    # The reentrant kind trains nothing where the input carries no gradient.
    result: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return result


def run_recomputed(function: Callable[..., Result], *args: Tensor) -> Result:
    """``function(*args)``, which keeps the tensors ``(*)`` of ``args`` alone; backward runs it again.

    Both runs draw the same random numbers. The program's random state is that after one run.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result


@contextmanager
def recomputed(make: Callable[[Tensor], Tensor], *sources: Tensor) -> Iterator[list[Tensor]]:
    """Yield ``make`` of each source; backward recomputes these results instead of keeping them.

    Args:
        make: Cheap and deterministic; its result is contiguous.
        sources: Tensors ``(*)`` that stay in memory anyway.
    """
    results = [make(source) for source in sources]
    # Operations keep views of the results too, so that an object's identity would not find them: their memory does.
    origins = {_memory(result): source.detach() for result, source in zip(results, sources, strict=True)}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        """Replace a tensor ``(*)`` that an operation keeps for backward, if it is one of the results."""
        source = origins.get(_memory(tensor))
        if source is None or not (tensor.numel() and tensor.is_contiguous()):
            return tensor
        # autograd checks versions of what it keeps itself; of what is recomputed, the check is ours.
        version, shape = version_of(source), tensor.shape

        def unpack() -> Tensor:
            if version_of(source) != version:
                raise RuntimeError(
                    "sfkit cannot recompute a tensor for backward: its source was changed in place after the forward "
                    'pass. Do not change it, or wrap with recompute="none".'
                )
            return make(source).reshape(shape)

        return unpack

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept if isinstance(kept, Tensor) else kept()):
        yield results


def _memory(tensor: Tensor) -> tuple[int, int, torch.dtype]:
    """What identifies the values of a contiguous tensor ``(*)``, however its shape is viewed."""
    return tensor.data_ptr(), tensor.numel(), tensor.dtype


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor ``(*)`` was changed in place; None in inference mode, where torch does not count."""
    return None if tensor.is_inference() else tensor._version
