"""Warm-up."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.schedules.base import Schedule


class WarmUpOptions(Options):
    """Options of :class:`WarmUpSchedule`."""

    steps: int = Field(ge=1, description="Steps until the factor is 1.")


class WarmUpSchedule(Schedule):
    """``f(s) = min(1, (s + 1) / (steps + 1))``: rises linearly, is 1 from step ``steps`` on, and never 0."""

    name = "warm-up"
    Options: ClassVar[type[Options]] = WarmUpOptions
    options: WarmUpOptions

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.options.steps + 1))
