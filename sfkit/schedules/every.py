"""Every n steps."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.registry.component import Harmless
from sfkit.schedules.base import Schedule


class EveryOptions(Options):
    """Options of :class:`EverySchedule`."""

    n: int = Field(ge=1, description="Align at one step of so many.")
    compensate: Harmless[bool] = Field(
        default=False, description="Make those steps n times as heavy: the same weight on average."
    )


class EverySchedule(Schedule):
    """``f(s) = 1`` (or ``n`` with ``compensate``) where ``n`` divides ``s``, else 0: the teacher does not run there."""

    name = "every"
    Options: ClassVar[type[Options]] = EveryOptions
    options: EveryOptions

    def factor(self, step: int) -> float:
        if step % self.options.n:
            return 0.0
        return float(self.options.n) if self.options.compensate else 1.0
