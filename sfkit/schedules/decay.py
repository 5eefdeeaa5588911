"""Falling from 1 to a lower factor: what the linear and the cosine schedule share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.schedules.base import Schedule


class DecayOptions(Options):
    """Options of the schedules that fall."""

    steps: int = Field(ge=1, description="Steps from the factor 1 to the last.")
    delay: int = Field(default=0, ge=0, description="Steps before that, at the factor 1.")
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
        if done >= self.options.steps:
            return self.options.to
        return self.options.to + (1 - self.options.to) * self.shape(max(0, done) / self.options.steps)

    def over(self, step: int) -> bool:
        return self.options.to == 0 and step >= self.options.delay + self.options.steps
