"""Cosine decay."""

from __future__ import annotations

import math

from sfkit.schedules.decay import DecaySchedule


class CosineSchedule(DecaySchedule):
    """``f(s) = to + (1 - to) (1 + cos(pi p)) / 2``, where ``p = (s - delay) / steps``, kept within [0, 1].

    Source of the shape: Loshchilov and Hutter, arXiv 1608.03983, equation 5, there for a learning rate.
    """

    name = "cosine"

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))
