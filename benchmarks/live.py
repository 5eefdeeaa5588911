"""Bytes alive while a block runs, to the byte: what an allocator would have to hold."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts each storage once, from the operation that makes it until nothing refers to it any more.

    Backward passes count as well, on the CPU: they run in the same thread. What an operation needs within itself, and
    frees again, is not seen.

    Args:
        beside: Tensors that are there anyway, and do not count.

    Attributes:
        now: Bytes alive.
        peak: The most that there ever were.
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._beside = list(beside)  # held, so that no address is used twice
        self._seen = {tensor.untyped_storage()._cdata for tensor in self._beside}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
