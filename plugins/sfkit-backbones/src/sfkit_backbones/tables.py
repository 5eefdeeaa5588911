"""Small tensors that depend on the grid and the device only, computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Table = TypeVar("Table")

#: Grids in use at one time; beyond that the oldest table goes.
_MOST = 16


class Tables(Generic[Table]):
    """Remembers what was made for a key. The key must hold all that the table depends on.

    Tables are made outside inference mode, so that they are ordinary tensors: compiled code and autograd refuse or
    recompile for the others.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Table] = {}

    def get(self, key: Hashable, make: Callable[[], Table]) -> Table:
        """The table for ``key``, made by ``make`` if this is the first time."""
        if key not in self._made:
            while len(self._made) >= _MOST:
                del self._made[next(iter(self._made))]
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = make()
        return self._made[key]

    def clear(self) -> None:
        """Forget all tables."""
        self._made.clear()
