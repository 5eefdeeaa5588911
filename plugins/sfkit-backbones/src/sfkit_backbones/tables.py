"""Cache of small tensors that depend on the grid and the device only."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Table = TypeVar("Table")

#: Number of cached tables; the oldest one makes room for a new one.
_MOST = 16


class Tables(Generic[Table]):
    """A cache of tables. The key must hold everything that a table depends on."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Table] = {}

    def get(self, key: Hashable, make: Callable[[], Table]) -> Table:
        """The table for ``key``; ``make`` computes it on first use."""
        if key not in self._made:
            while len(self._made) >= _MOST:
                del self._made[next(iter(self._made))]
            # Autograd refuses tensors of inference mode, and compiled code recompiles for them.
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = make()
        return self._made[key]

    def clear(self) -> None:
        """Drop all tables."""
        self._made.clear()
