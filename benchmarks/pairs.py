"""Timing two arms against each other: interleaved, in random order, on two clocks."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Seconds:
    """One run of one arm. ``cpu`` adds up all threads, and child processes that have ended."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass
class Pairs:
    """Runs of both arms; the runs at one position were made one right after the other."""

    base: list[Seconds] = field(default_factory=list)
    other: list[Seconds] = field(default_factory=list)

    def ratio(self, clock: str) -> Ratio:
        """``other / base`` on one clock, ``"wall"`` or ``"cpu"``."""
        base, other = (np.array([getattr(run, clock) for run in arm]) for arm in (self.base, self.other))
        return median_with_interval(other / base)

    def median_seconds(self, arm: str, clock: str) -> float:
        return float(np.median([getattr(run, clock) for run in getattr(self, arm)]))


def median_with_interval(ratios: npt.NDArray[np.float64]) -> Ratio:
    """The median, and the middle 95 % of the medians of resampled ratios."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[chosen], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def interleave(
    base: Callable[[], object],
    other: Callable[[], object],
    *,
    pairs: int,
    warmup: int,
    seed: int,
    advance: Callable[[], None],
    into: Pairs | None = None,
) -> Pairs:
    """Run both arms ``warmup`` times untimed, then ``pairs`` times, each pair in an order drawn anew.

    A machine that slows down for a while slows both runs of a pair, and which of them comes first is left to chance,
    so that neither drift nor warm caches favor an arm.

    Args:
        base: The arm that ratios are taken of. An arm that returns :class:`Seconds` has taken its own time.
        other: The arm that is compared with it.
        pairs: Timed runs of each.
        warmup: Untimed runs of each.
        seed: Of the order.
        advance: Called after each pair, warm-up included.
        into: Pairs to add to.
    """
    found = Pairs() if into is None else into
    order = random.Random(seed)
    for index in range(warmup + pairs):
        base_first = order.random() < 0.5
        runs = [_timed(arm) for arm in ((base, other) if base_first else (other, base))]
        if index >= warmup:
            found.base.append(runs[0 if base_first else 1])
            found.other.append(runs[1 if base_first else 0])
        advance()
    return found


def _timed(arm: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), _cpu()
    own = arm()
    if isinstance(own, Seconds):
        return own
    return Seconds(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(chain.from_iterable(_times(usage) for usage in usages))


def _times(usage: resource.struct_rusage) -> Iterable[float]:
    return usage.ru_utime, usage.ru_stime
