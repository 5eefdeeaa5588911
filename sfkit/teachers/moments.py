"""Running mean and variance of targets, kept for each position of the grid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfkit.errors import ShapeError


class RunningMoments:
    """Sums over samples of masked ``(b, *positions, d)`` values, in float64 where the device has it.

    They are sums, and not means, so that ranks can add theirs up.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def empty(self) -> bool:
        """True before the first update."""
        return self._sums is None

    def update(self, values: Tensor, mask: Tensor) -> None:
        """Add ``(b, *positions, d)`` values where ``(b, *positions)`` mask is True; summed over all ranks.

        Raises:
            ShapeError: The positions differ from those seen before (another grid or number of views).
        """
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        kept = torch.where(mask.unsqueeze(-1), values, 0.0).to(dtype)
        new = (mask.unsqueeze(-1).to(dtype).sum(0), kept.sum(0), kept.square().sum(0))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for item in new:
                torch.distributed.all_reduce(item)
        if self._sums is None:
            self._sums = new
            return
        if self._sums[1].shape != new[1].shape:
            raise ShapeError(
                f"Target statistics are for (views, rows, columns, channels) {tuple(self._sums[1].shape)}, "
                f"this batch has {tuple(new[1].shape)}."
            )
        old = (item.to(values.device) for item in self._sums)
        count, total, square = (a + b for a, b in zip(old, new, strict=True))
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
        self._sums = (state["count"], state["total"], state["square"]) if state else None
