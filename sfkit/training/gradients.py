"""Gradient norms at the tapped tokens, of the alignment and of the action loss, from the ordinary backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.training.taps import Captured, TapSite
from sfkit.utils.runtime import is_distributed, is_recompute_forward


@dataclass(frozen=True)
class GradientSums:
    """Sums over tokens, channels, and the backward passes since the last reading; ``(sites,)`` float32 each.

    Attributes:
        alignment: Squared gradient of the weighted alignment loss.
        action: Squared gradient of everything else, at the tokens whose alignment gradient is not zero.
        dot: Product of the two gradients.
        unweighted: As ``alignment``, for a weight of 1.
    """

    alignment: Tensor
    action: Tensor
    dot: Tensor
    unweighted: Tensor

    @classmethod
    def of(cls, table: Tensor) -> GradientSums:
        """From the ``(sites, 4)`` table of :class:`GradientMeter`."""
        return cls(*table.unbind(1))

    @property
    def ratio(self) -> Tensor:
        """``()``: norm of the alignment gradient over that of the action gradient; NaN where one was not seen."""
        ratio = (self.alignment.sum() / self.action.sum().clamp(min=1e-38)).sqrt()
        return torch.where(self.known, ratio, torch.nan)

    @property
    def cosine(self) -> Tensor:
        """``()``: cosine between the two, over all sites; NaN where one was not seen."""
        norm = (self.alignment.sum().sqrt() * self.action.sum().sqrt()).clamp(min=1e-38)
        return torch.where(self.known, self.dot.sum() / norm, torch.nan)

    @property
    def known(self) -> Tensor:
        """``()`` bool: both were seen, and are finite."""
        # Each sum by itself: their product overflows float32 under the loss scales of float16 training.
        sums = torch.stack([self.alignment.sum(), self.action.sum(), self.unweighted.sum()])
        return ((sums > 0) & sums.isfinite()).all()


class GradientMeter:
    """Reads both gradients from hooks on tensors, without a backward pass of its own.

    The alignment reads the tapped tensor through an identity view. The gradient at the view is the alignment's alone;
    the gradient at the tapped tensor is the sum; the difference is the action's. A scaled loss scales both, so that
    ratio and cosine do not depend on it. Hooks live and die with the graph, and only numbers are kept.

    Three limits. With several sites, what deeper pairs send back to a shallower one counts there as the action's. In
    a policy that computes in bfloat16 the difference is exact to 1/256 of the sum only. And a tap inside a graph of
    ``torch.compile`` sees no action gradient, because that never leaves the graph.

    Args:
        sites: How many sites are tapped.

    Attributes:
        live: False while gradients pass that are not those of the training step.
        table: ``(sites, 4)`` sums of this rank since the last reading; None before the first.
    """

    def __init__(self, sites: int) -> None:
        self.sites = sites
        self.live = False
        self.table: Tensor | None = None

    def branches(self, captured: Mapping[TapSite, Captured], weight: Tensor | float) -> dict[TapSite, Captured]:
        """For each tapped tensor, ``(b, n, d)`` or ``(b, d, h, w)``, the view that the alignment must read.

        Args:
            captured: By site, in the order of the sums.
            weight: ``()``, of the alignment loss in this step.
        """
        return {
            site: tuple(self._branch(tensor, index, weight) for tensor in tensors)
            for index, (site, tensors) in enumerate(captured.items())
        }

    def _branch(self, tensor: Tensor, index: int, weight: Tensor | float) -> Tensor:
        """An identity view of a tensor ``(*)``, with hooks on both."""
        if not tensor.requires_grad:
            return tensor
        branch = tensor.view_as(tensor)
        record = _Record(self, index, weight)
        branch.register_hook(record.see_alignment)  # type: ignore[no-untyped-call]
        tensor.register_hook(record.see_sum)  # type: ignore[no-untyped-call]
        return branch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Measure nothing within the block, and everything after it, also if it broke off."""
        before, self.live = self.live, False
        try:
            yield
        finally:
            self.live = before or not is_recompute_forward()

    def add(self, index: int, sums: Tensor) -> None:
        """Add the ``(4,)`` sums of one backward pass at one site."""
        if self.table is None:
            self.table = sums.new_zeros(self.sites, 4)
        self.table[index] += sums

    def take(self, device: torch.device) -> Tensor:
        """``(sites, 4)`` sums since the last reading, 0 where nothing was seen; reduced over all ranks.

        A collective: all ranks call it in the same steps. It does not wait for the device.
        """
        table, self.table = self.table, None
        # A resumed table is still on the CPU.
        table = torch.zeros(self.sites, 4, dtype=torch.float32, device=device) if table is None else table.to(device)
        if is_distributed():
            torch.distributed.all_reduce(table)
        return table


class _Record:
    """The two hooks of one tapped tensor in one step."""

    def __init__(self, meter: GradientMeter, index: int, weight: Tensor | float) -> None:
        self._meter, self._index, self._weight = meter, index, weight
        self._alignment: Tensor | None = None

    def see_alignment(self, gradient: Tensor) -> None:
        """Keep the gradient of the alignment, in the shape of the tapped tensor, ``(b, n, d)`` or ``(b, d, h, w)``."""
        if self._meter.live:  # and not while the self-check sends gradients of its own
            self._alignment = gradient.detach()

    @torch.no_grad()
    def see_sum(self, gradient: Tensor) -> None:
        """Split the sum of both gradients, ``(b, n, d)`` or ``(b, d, h, w)``, and add its squares to the table."""
        alignment, self._alignment = self._alignment, None
        if alignment is None or not self._meter.live:
            return
        alignment = alignment.float()
        pulled = alignment.ne(0).any(1 if alignment.ndim == 4 else -1, keepdim=True)
        action = torch.where(pulled, gradient.detach().float() - alignment, 0.0)
        square = alignment.square().sum()
        sums = [square, action.square().sum(), (alignment * action).sum(), square / self._weight**2]
        self._meter.add(self._index, torch.stack(sums))
