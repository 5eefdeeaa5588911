"""Measuring how the alignment pulls at the tapped tokens, and how the action loss does, in the ordinary backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.config import StudentLayer
from sfkit.training.taps import Captured
from sfkit.utils.runtime import is_distributed, is_recompute_forward


@dataclass(frozen=True)
class GradientSums:
    """Sums over tokens, channels, and the backward passes since the last reading; ``(layers,)`` float32 each.

    Attributes:
        alignment: Squares of the gradient of the weighted alignment loss.
        action: Squares of the gradient of everything else, at the tokens that the alignment pulls at.
        dot: Products of the two.
        unweighted: As ``alignment``, for a weight of 1.
    """

    alignment: Tensor
    action: Tensor
    dot: Tensor
    unweighted: Tensor

    @classmethod
    def of(cls, table: Tensor) -> GradientSums:
        """From the ``(layers, 4)`` table of :class:`GradientMeter`."""
        return cls(*table.unbind(1))

    @property
    def ratio(self) -> Tensor:
        """``()``: norm of the alignment gradient over that of the action gradient; NaN where one was not seen."""
        known = self.known
        return torch.where(known, (self.alignment.sum() / self.action.sum().clamp(min=1e-38)).sqrt(), torch.nan)

    @property
    def cosine(self) -> Tensor:
        """``()``: cosine between the two, over all layers; NaN where one was not seen."""
        norm = (self.alignment.sum().sqrt() * self.action.sum().sqrt()).clamp(min=1e-38)
        return torch.where(self.known, self.dot.sum() / norm, torch.nan)

    @property
    def known(self) -> Tensor:
        """``()`` bool: both were seen, and are finite."""
        total = self.alignment.sum() * self.action.sum() * self.unweighted.sum()
        return (self.alignment.sum() > 0) & (self.action.sum() > 0) & total.isfinite()


class GradientMeter:
    """Reads both gradients from hooks on tensors, without a backward of its own.

    The alignment reads the tapped tensor through an identity view. What arrives at the view is the gradient of the
    alignment alone; what arrives at the tapped tensor is the sum; the difference is the action's. Scaled losses scale
    both, so that ratio and cosine do not depend on it. Hooks live and die with the graph, and only numbers are kept.

    Three limits. With several layers, what deeper pairs send back to a shallower one counts there as the action's. In
    a policy that computes in bfloat16 the difference is exact to 1/256 of the sum only. And a tap inside a graph of
    ``torch.compile`` sees no action gradient, because that never leaves the graph.

    Args:
        layers: The tapped layers, in the order of the sums.

    Attributes:
        live: False while gradients pass that are not those of the training step.
        table: ``(layers, 4)`` sums of this rank since the last reading; None before the first.
    """

    def __init__(self, layers: Sequence[StudentLayer]) -> None:
        self.layers = tuple(layers)
        self.live = False
        self.table: Tensor | None = None

    def branches(self, hidden: Mapping[StudentLayer, Captured], weight: Tensor | float) -> dict[StudentLayer, Captured]:
        """For each tapped tensor ``(b, n, d)``, the view that the alignment must read; measures their gradients.

        Args:
            hidden: By layer; several tensors where a tap caught several.
            weight: Of the alignment loss in this step.
        """
        found: dict[StudentLayer, Captured] = {}
        for index, layer in enumerate(self.layers):
            captured = hidden[layer]
            if isinstance(captured, Tensor):
                found[layer] = self._branch(captured, index, weight)
            else:
                found[layer] = tuple(self._branch(tensor, index, weight) for tensor in captured)
        return found

    def _branch(self, tensor: Tensor, index: int, weight: Tensor | float) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        branch = tensor.view_as(tensor)
        record = _Record(self, index, weight)
        branch.register_hook(record.see_alignment)  # type: ignore[no-untyped-call]
        tensor.register_hook(record.see_sum)  # type: ignore[no-untyped-call]
        return branch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block nothing is measured; after that of a training step everything is, also if it broke off."""
        before, self.live = self.live, False
        try:
            yield
        finally:
            self.live = before or not is_recompute_forward()

    def add(self, index: int, sums: Tensor) -> None:
        """Add the ``(4,)`` sums of one backward at one layer."""
        if self.table is None:
            self.table = sums.new_zeros(len(self.layers), 4)
        self.table[index] += sums

    def take(self, device: torch.device) -> Tensor:
        """The ``(layers, 4)`` sums since the last reading, 0 where nothing was seen; reduced over all ranks.

        All ranks must call it in the same steps. It does not wait for the device.
        """
        table, self.table = self.table, None
        if table is None:
            table = torch.zeros(len(self.layers), 4, device=device)
        if is_distributed():
            torch.distributed.all_reduce(table)
        return table


class _Record:
    """The two hooks of one layer in one step."""

    def __init__(self, meter: GradientMeter, index: int, weight: Tensor | float) -> None:
        self._meter, self._index, self._weight = meter, index, weight
        self._alignment: Tensor | None = None

    def see_alignment(self, gradient: Tensor) -> None:
        if self._meter.live:  # and not while the first-batch check sends gradients of its own
            self._alignment = gradient.detach()

    @torch.no_grad()
    def see_sum(self, gradient: Tensor) -> None:
        alignment, self._alignment = self._alignment, None
        if alignment is None or not self._meter.live:
            return
        alignment = alignment.float()
        pulled = alignment.ne(0).any(-1, keepdim=True)
        action = torch.where(pulled, gradient.detach().float() - alignment, 0.0)
        square = alignment.square().sum()
        sums = [square, action.square().sum(), (alignment * action).sum(), square / self._weight**2]
        self._meter.add(self._index, torch.stack(sums))
