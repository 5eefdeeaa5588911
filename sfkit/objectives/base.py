"""The objective interface."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sfkit.component import AnyOptions, Configured


class Objective(Configured, ABC):
    """A distance between two feature grids, for each sample."""

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Compare the maps.

        Args:
            student: ``(b, v, gh, gw, d)`` float32 projected tokens, finite everywhere.
            teacher: Same shape, finite everywhere, without gradient.
            mask: ``(b, v, gh, gw)`` bool; tokens where it is False must not influence the result.

        Returns:
            ``(b,)`` losses; 0 with zero gradient for a sample without a valid token.
        """


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(b, ...)`` values over the tokens where the mask is True; 0 where a sample has none."""
    kept = values.masked_fill(~mask, 0.0).flatten(1).sum(1)
    return kept / mask.flatten(1).sum(1).clamp(min=1)
