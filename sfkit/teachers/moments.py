"""Running mean and variance of targets, kept for each position of the grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from sfkit.errors import ShapeError

#: How many values, their sum, and the sum of their squares.
Sums: TypeAlias = tuple[Tensor, Tensor, Tensor]


class RunningMoments:
    """Sums over samples of masked ``(b, *positions, d)`` values, in float64 where the device has it.

    They are sums, and not means, so that ranks can add theirs up.
    """

    def __init__(self) -> None:
        self._sums: Sums | None = None

    @property
    def empty(self) -> bool:
        """True before the first update."""
        return self._sums is None

    def update(self, batch: tuple[Tensor, Tensor] | None) -> None:
        """Add one batch from every rank; all ranks must call this together, those without a batch with None.

        Args:
            batch: ``(b, *positions, d)`` values, and the ``(b, *positions)`` mask of those that count.

        Raises:
            ShapeError: The positions differ from those seen before (another grid or number of views).
        """
        for sums in _from_all_ranks(None if batch is None else _sums(*batch)):
            if self._sums is None:
                self._sums = sums
            elif self._sums[1].shape != sums[1].shape:
                raise ShapeError(
                    f"Target statistics are for (views, rows, columns, channels) {tuple(self._sums[1].shape)}, "
                    f"this batch has {tuple(sums[1].shape)}."
                )
            else:
                count, total, square = (a.to(b.device) + b for a, b in zip(self._sums, sums, strict=True))
                self._sums = (count, total, square)

    def mean_and_std(self, *, by_position: bool) -> tuple[Tensor, Tensor]:
        """Mean (``(d,)``, or ``(*positions, d)`` with ``by_position``) and the ``(d,)`` deviation about it, float32.

        Channels that do not vary get a deviation of 1; positions never seen get the overall mean.
        """
        if self._sums is None:
            raise RuntimeError("no statistics were gathered")
        count, total, square = self._sums
        axes = tuple(range(total.ndim - 1))
        seen = count.sum(axes).clamp(min=1)
        overall = total.sum(axes) / seen
        mean = overall
        if by_position:
            mean = torch.where(count > 0, total / count.clamp(min=1), overall)
        # Sum over positions of E[(x - m_p)^2], from the sums alone.
        spread = (square - 2 * mean * total + count * mean.square()).sum(axes) / seen
        std = spread.clamp(min=0).sqrt()
        std = torch.where(std < 1e-6 * overall.abs().clamp(min=1), torch.ones_like(std), std)
        return mean.float(), std.float()

    def state(self) -> dict[str, Tensor]:
        """Named tensors from which ``load_state`` restores."""
        if self._sums is None:
            return {}
        return dict(zip(("count", "total", "square"), (item.cpu() for item in self._sums), strict=True))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        # Copies: what was read from a safetensors file is mapped from it.
        self._sums = (state["count"].clone(), state["total"].clone(), state["square"].clone()) if state else None


def _sums(values: Tensor, mask: Tensor) -> Sums:
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where(mask.unsqueeze(-1), values, 0.0).to(dtype)
    return mask.unsqueeze(-1).to(dtype).sum(0), kept.sum(0), kept.square().sum(0)


def _from_all_ranks(mine: Sums | None) -> list[Sums]:
    """Every rank's sums in the order of ranks, so that all ranks add up the same numbers in the same order.

    Objects rather than tensors are gathered: a rank that sits out does not know the shape. It happens in the first few
    steps only.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [] if mine is None else [mine]
    everybody: list[Sums | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, mine)
    return [sums for sums in everybody if sums is not None]
