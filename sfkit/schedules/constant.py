"""No schedule."""

from __future__ import annotations

from sfkit.schedules.base import Schedule


class ConstantSchedule(Schedule):
    """``f(s) = 1``.

    Source: Spatial Forcing, arXiv 2510.12276, which keeps its weight of 0.5 throughout.
    """

    name = "constant"

    def factor(self, step: int) -> float:
        return 1.0
