"""The schedules of the core, one class for each."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.schedules.base import Schedule


class ConstantSchedule(Schedule):
    """``f(s) = 1``.

    Source: Spatial Forcing, arXiv 2510.12276, which keeps its weight of 0.5 throughout.
    """

    name = "constant"

    def factor(self, step: int) -> float:
        return 1.0


class DecayOptions(Options):
    """Options of the schedules that decay."""

    steps: int = Field(ge=1, description="Number of steps from the factor 1 to the last factor.")
    delay: int = Field(default=0, ge=0, description="Number of steps before that, at the factor 1.")
    to: float = Field(default=0.0, ge=0, description="The last factor; at 0 the teacher is freed.")


class DecaySchedule(Schedule):
    """``f(s) = to + (1 - to) g(p)``, where ``p = (s - delay) / steps``, kept within [0, 1]."""

    Options: ClassVar[type[Options]] = DecayOptions
    options: DecayOptions

    @abstractmethod
    def shape(self, progress: float) -> float:
        """``g``: from 1 at progress 0 to 0 at progress 1."""

    def factor(self, step: int) -> float:
        done = step - self.options.delay
        # The exact last factor, without rounding: at 0 the teacher is freed.
        if done >= self.options.steps:
            return self.options.to
        return self.options.to + (1 - self.options.to) * self.shape(max(0, done) / self.options.steps)

    def over(self, step: int) -> bool:
        return self.options.to == 0 and step >= self.options.delay + self.options.steps


class LinearSchedule(DecaySchedule):
    """``f(s) = to + (1 - to) (1 - p)``, where ``p = (s - delay) / steps``, kept within [0, 1]."""

    name = "linear"

    def shape(self, progress: float) -> float:
        return 1 - progress


class CosineSchedule(DecaySchedule):
    """``f(s) = to + (1 - to) (1 + cos(pi p)) / 2``, where ``p = (s - delay) / steps``, kept within [0, 1].

    Source of the shape: Loshchilov and Hutter, arXiv 1608.03983, equation 5, there for a learning rate.
    """

    name = "cosine"

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class WarmUpOptions(Options):
    """Options of :class:`WarmUpSchedule`."""

    steps: int = Field(ge=1, description="Steps until the factor is 1.")


class WarmUpSchedule(Schedule):
    """``f(s) = min(1, (s + 1) / (steps + 1))``: rises linearly, is 1 from step ``steps`` on, and never 0."""

    name = "warm-up"
    Options: ClassVar[type[Options]] = WarmUpOptions
    options: WarmUpOptions

    def factor(self, step: int) -> float:
        # Never 0, so that the checks of the first batch see an aligned step.
        return min(1.0, (step + 1) / (self.options.steps + 1))


class EveryOptions(Options):
    """Options of :class:`EverySchedule`."""

    n: int = Field(ge=1, description="Align at one step of so many.")
    compensate: Harmless[bool] = Field(default=False, description="Multiply the weight at those steps by n.")


class EverySchedule(Schedule):
    """``f(s) = 1`` (or ``n`` with ``compensate``) where ``n`` divides ``s``, else 0: the teacher does not run there."""

    name = "every"
    Options: ClassVar[type[Options]] = EveryOptions
    options: EveryOptions

    def factor(self, step: int) -> float:
        if step % self.options.n:
            return 0.0
        return float(self.options.n) if self.options.compensate else 1.0


class StopOptions(Options):
    """Options of :class:`StopSchedule`."""

    at: int = Field(ge=1, description="The first step without alignment.")


class StopSchedule(Schedule):
    """``f(s) = 1`` before step ``at``, 0 from there on.

    Source: HASTE, arXiv 2505.16792: early alignment helps, and after some point it hinders the student.
    """

    name = "stop"
    Options: ClassVar[type[Options]] = StopOptions
    options: StopOptions

    def factor(self, step: int) -> float:
        return 0.0 if self.over(step) else 1.0

    def over(self, step: int) -> bool:
        return step >= self.options.at


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
    judging an auxiliary loss by that cosine is due to Du et al. (arXiv 1812.02224). The mean is sfkit's own rule.
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
        # The gradients could not be compared, for instance because one of them is 0.
        if math.isnan(cosine):
            return
        self._count += 1
        self._mean += (cosine - self._mean) / min(self._count, self.options.patience)
        self._stopped = self._stopped or (self._count >= self.options.patience and self._mean < self.options.below)

    def state(self) -> dict[str, float]:
        return {"mean": self._mean, "count": float(self._count), "stopped": float(self._stopped)}

    def load_state(self, state: Mapping[str, float]) -> None:
        mean, count, stopped = state["mean"], state["count"], state["stopped"]
        if not (-1.001 <= mean <= 1.001 and count >= 0 and count.is_integer() and stopped in (0, 1)):
            raise ValueError(f"a mean of {mean}, {count} measurements and stopped={stopped} are no state of it")
        self._mean, self._count, self._stopped = mean, int(count), bool(stopped)
