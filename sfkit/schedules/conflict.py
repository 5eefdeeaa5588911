"""Stop when the two gradients conflict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.registry.component import AnyOptions
from sfkit.schedules.base import Schedule


class ConflictOptions(Options):
    """Options of :class:`ConflictSchedule`."""

    below: float = Field(default=-0.05, ge=-1, le=1, description="Stop when the mean cosine is below this.")
    patience: int = Field(default=20, ge=1, description="Measurements in the mean, and the least before a stop.")
    interval: int = Field(default=10, ge=1, description="Measure at one step of so many.")


class ConflictSchedule(Schedule):
    """``f(s) = 1`` until the mean cosine of alignment and action gradient falls below a threshold, then 0 for good.

    The cosine is measured at the tapped tokens at every ``interval`` steps, over all ranks; the mean is exponential,
    ``m <- m + (c - m) / min(k, patience)`` at the ``k``-th measurement.

    Source: that the two gradients agree early, and oppose each other late, is observed in HASTE (arXiv 2505.16792);
    judging an auxiliary loss by that cosine is due to Du et al. (arXiv 1812.02224). The rule of the mean is sfkit's.
    """

    name = "conflict"
    Options: ClassVar[type[Options]] = ConflictOptions
    options: ConflictOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        self._mean, self._count, self._stopped = 0.0, 0, False

    def factor(self, step: int) -> float:
        return 0.0 if self._stopped else 1.0

    def over(self, step: int) -> bool:
        return self._stopped

    def watches_at(self, step: int) -> bool:
        return not self._stopped and step % self.options.interval == 0

    def observe(self, step: int, cosine: float) -> None:
        if math.isnan(cosine):
            return
        self._count += 1
        self._mean += (cosine - self._mean) / min(self._count, self.options.patience)
        self._stopped = self._stopped or (self._count >= self.options.patience and self._mean < self.options.below)

    def state(self) -> dict[str, float]:
        return {"mean": self._mean, "count": float(self._count), "stopped": float(self._stopped)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._mean, self._count, self._stopped = state["mean"], int(state["count"]), bool(state["stopped"])
