"""Hard stop."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.schedules.base import Schedule


class StopOptions(Options):
    """Options of :class:`StopSchedule`."""

    at: int = Field(ge=1, description="The first step without alignment.")


class StopSchedule(Schedule):
    """``f(s) = 1`` before step ``at``, 0 from there on.

    Source: HASTE, arXiv 2505.16792: early alignment helps, and past some point it holds the student back.
    """

    name = "stop"
    Options: ClassVar[type[Options]] = StopOptions
    options: StopOptions

    def factor(self, step: int) -> float:
        return 0.0 if self.over(step) else 1.0

    def over(self, step: int) -> bool:
        return step >= self.options.at
