"""Figures for LeRobot's log, kept on the device until the trainer shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_STAYS = "sf_grad_"


class LogWindow:
    """Means over a window of steps.

    LeRobot goes on showing what it has seen once, as 0 where it is not given: a figure that no step of a window has is
    NaN there. Gradients are measured at one step of many: their figures stay as they were measured last.

    Args:
        length: Steps in a window.
        done: Steps that were done before, so that windows end where the trainer's do.
    """

    def __init__(self, length: int = 1, done: int = 0) -> None:
        self.length = length
        self.steps = done
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._last: dict[str, float] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Note the figures of a step (0-d). NaN, as of a cosine without any token, does not count."""
        self.steps += 1
        for key, value in figures.items():
            known = ~value.isnan()
            self._sums[key] = self._sums.get(key, 0) + value.nan_to_num(0.0)
            self._counts[key] = self._counts.get(key, 0) + known

    def due(self) -> dict[str, float]:
        """Their means at the end of a window, which this then forgets; nothing in between."""
        if self.steps % self.length:
            return {}
        means = torch.stack([self._sums[key] / self._counts[key] for key in self._sums]).tolist()
        keys = list(self._sums)
        self._sums, self._counts = {}, {}
        absent = {key: value if key.startswith(_STAYS) else math.nan for key, value in self._last.items()}
        self._last = {**absent, **dict(zip(keys, means, strict=True))}
        return dict(self._last)
