"""What the backward pass can make again is not kept for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

_sparing: ContextVar[bool] = ContextVar("sfkit_sparing", default=False)


@contextmanager
def recompute_scope(on: bool = True) -> Iterator[None]:
    """Within the block, :func:`recompute` keeps inputs only."""
    token = _sparing.set(on)
    try:
        yield
    finally:
        _sparing.reset(token)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``; within :func:`recompute_scope` it keeps ``x`` alone for backward, which computes the rest again.

    What ends on a matrix product is run again up to that product and no further: torch stops as soon as it has all
    that backward needs. So a norm or an activation before a product costs itself once more, and the product nothing.

    Args:
        function: Deterministic, and without a random number.
        x: Its input.
    """
    if not (_sparing.get() and torch.is_grad_enabled()):
        return function(x)
    found: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return found


def run_recomputed(function: Callable[..., Result], *args: Tensor) -> Result:
    """``function(*args)``, all of which is run again in backward, with the same random numbers; only ``args`` are kept.

    The random state of the program is as if it had been run once.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result


@dataclass(frozen=True)
class _Remade:
    """A tensor that backward gets by making it again."""

    source: Tensor
    version: int | None
    make: Callable[[Tensor], Tensor]
    shape: torch.Size

    def __call__(self) -> Tensor:
        if version_of(self.source) != self.version:
            raise RuntimeError(
                "sfkit was to make a tensor again for backward, but what it is made from was changed in place after "
                'the forward pass. Do not change it, or wrap with recompute="none".'
            )
        return self.make(self.source).reshape(self.shape)


@contextmanager
def recomputed(make: Callable[[Tensor], Tensor], *sources: Tensor) -> Iterator[list[Tensor]]:
    """``make`` of each source; what operations in the block would keep of them for backward is made anew there.

    Args:
        make: Cheap and deterministic; its result is contiguous.
        sources: What is in memory anyway.
    """
    origins = [source.detach() for source in sources]
    results = [make(source) for source in sources]
    kept = {
        (result.data_ptr(), result.numel(), result.dtype): source
        for result, source in zip(results, origins, strict=True)
    }

    def pack(tensor: Tensor) -> Tensor | _Remade:
        source = kept.get((tensor.data_ptr(), tensor.numel(), tensor.dtype))
        if source is None or not (tensor.numel() and tensor.is_contiguous()):
            return tensor
        return _Remade(source, version_of(source), make, tensor.shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield results


def _unpack(kept: Tensor | _Remade) -> Tensor:
    return kept() if isinstance(kept, _Remade) else kept


def version_of(tensor: Tensor) -> int | None:
    """How often it was changed in place; None for tensors of inference mode, which do not count it."""
    return None if tensor.is_inference() else tensor._version
