"""Linear decay."""

from __future__ import annotations

from sfkit.schedules.decay import DecaySchedule


class LinearSchedule(DecaySchedule):
    """``f(s) = to + (1 - to) (1 - p)``, where ``p = (s - delay) / steps``, kept within [0, 1]."""

    name = "linear"

    def shape(self, progress: float) -> float:
        return 1 - progress
