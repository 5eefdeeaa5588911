"""Running mean and variance of targets, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.utils.runtime import is_distributed

#: How many values, their sum, and the sum of their squares: ``(*positions, 1)``, then twice ``(*positions, d)``.
Sums: TypeAlias = tuple[Tensor, Tensor, Tensor]


class RunningMoments:
    """Means for each name and position, and one deviation about them for each channel.

    A name is a view (the mean of each patch position is kept) or, where positions are of no interest, anything. What is
    kept are sums, in float64 where the device has it, so that batches and ranks add up.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}

    @property
    def empty(self) -> bool:
        """True before the first update."""
        return not self._sums

    def update(self, batch: Mapping[str, tuple[Tensor, Tensor]] | None) -> None:
        """Add one batch from every rank; all ranks must call this together, those without a batch with None.

        Args:
            batch: By name, ``(b, *positions, d)`` values and the ``(b, *positions)`` mask of those that count.

        Raises:
            ShapeError: A name's positions differ from those seen before (another grid).
        """
        mine = {name: _sums(values, mask) for name, (values, mask) in (batch or {}).items()}
        for everything in _from_all_ranks(mine):
            for name, sums in everything.items():
                self._sums[name] = _added(name, self._sums.get(name), sums)

    def mean(self, name: str) -> Tensor:
        """``(*positions, d)`` float32 means of a name; positions never seen, and unknown names, get the overall one."""
        overall = self._overall()
        if name not in self._sums:
            return overall.float()
        count, total, _ = self._sums[name]
        return torch.where(count > 0, total / count.clamp(min=1), overall.to(total.device)).float()

    def std(self) -> Tensor:
        """``(d,)`` float32 deviation about the means of names and positions; 1 for channels that do not vary."""
        spread, seen = torch.zeros(()), torch.zeros(())
        for name, (count, total, square) in self._sums.items():
            mean = self.mean(name).to(total.dtype)
            # Sum over positions of E[(x - m)^2], from the sums alone.
            spread = spread.to(total) + _pooled(square - 2 * mean * total + count * mean.square())
            seen = seen.to(total) + _pooled(count)
        std = (spread / seen.clamp(min=1)).clamp(min=0).sqrt()
        floor = 1e-6 * self._overall().abs().clamp(min=1)
        return torch.where(std < floor, torch.ones_like(std), std).float()

    def state(self) -> dict[str, Tensor]:
        """Named tensors from which ``load_state`` restores."""
        fields = ("count", "total", "square")
        return {
            f"{field}.{name}": part.cpu()
            for name, sums in self._sums.items()
            for field, part in zip(fields, sums, strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave (as copies: tensors read from a file may be mapped from it)."""
        names = [key.removeprefix("count.") for key in state if key.startswith("count.")]
        self._sums = {
            name: (state[f"count.{name}"].clone(), state[f"total.{name}"].clone(), state[f"square.{name}"].clone())
            for name in names
        }

    def _overall(self) -> Tensor:
        if not self._sums:
            raise RuntimeError("no statistics were gathered")
        seen = sum(_pooled(count) for count, _, _ in self._sums.values())
        total = sum(_pooled(total) for _, total, _ in self._sums.values())
        return torch.as_tensor(total) / torch.as_tensor(seen).clamp(min=1)


def _pooled(values: Tensor) -> Tensor:
    return values.flatten(0, -2).sum(0) if values.ndim > 1 else values


def _added(name: str, old: Sums | None, new: Sums) -> Sums:
    if old is None:
        return new
    if old[1].shape != new[1].shape:
        raise ShapeError(
            f"Target statistics of {name} are for (rows, columns, channels) {tuple(old[1].shape)}, "
            f"this batch has {tuple(new[1].shape)}."
        )
    count, total, square = (a.to(b.device) + b for a, b in zip(old, new, strict=True))
    return count, total, square


def _sums(values: Tensor, mask: Tensor) -> Sums:
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where(mask.unsqueeze(-1), values, 0.0).to(dtype)
    return mask.unsqueeze(-1).to(dtype).sum(0), kept.sum(0), kept.square().sum(0)


def _from_all_ranks(mine: dict[str, Sums]) -> Iterable[dict[str, Sums]]:
    """Every rank's sums in the order of ranks, so that all ranks add up the same numbers in the same order.

    Objects rather than tensors are gathered: a rank that sits out knows neither names nor shapes. It happens in the
    first few steps only.
    """
    if not is_distributed():
        return [mine]
    everybody: list[dict[str, Sums] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, mine)
    return [sums for sums in everybody if sums is not None]
