"""Sentences of the report that follow from the numbers, for any outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from sfkit.factory.components import build_teacher
from sfkit_demo.settings import BLOCKS, POLICIES, Settings
from sfkit_demo.study import Row, spread

#: Wall time of both arms in minutes on two idle cores, for any policy with the geometry teacher.
_MINUTES, _MINUTES_PER_STEP = 1.0, 3 / 800


@dataclass(frozen=True)
class Paired:
    """Differences between two arms, seed by seed.

    Attributes:
        differences: Second arm minus first, for each seed that has both.
    """

    differences: tuple[float, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Row], first: str, second: str, column: str) -> Paired:
        """Pair the seeds of two arms."""
        a, b = spread(rows, first, column).values, spread(rows, second, column).values
        return cls(tuple(b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())))

    @property
    def mean(self) -> float:
        """Mean difference; NaN without seeds."""
        return fmean(self.differences) if self.differences else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; NaN for fewer than two."""
        return stdev(self.differences) if len(self.differences) > 1 else math.nan

    @property
    def same_sign(self) -> bool:
        """Whether the difference has the same sign for all seeds."""
        return all(d < 0 for d in self.differences) or all(d > 0 for d in self.differences)


def settings_line(settings: Settings) -> str:
    """The settings of a run, in one line."""
    teacher = build_teacher(settings.teacher)
    options = "".join(f", {key}={value}" for key, value in teacher.changed_options.items())
    minutes = round(_MINUTES + _MINUTES_PER_STEP * settings.steps)
    return (
        f"{POLICIES[settings.policy]} from scratch, plain and aligned with {teacher.name}{options}: {settings.steps} "
        f"steps of {settings.batch_size} frames, seed {settings.seed}, weight {settings.weight:g} at student layer "
        f"{settings.student_layer} of {BLOCKS}, {settings.method}. On two cores this takes about {minutes} min, "
        "and more with a large teacher."
    )


def paired_sentence(what: str, paired: Paired, *, second: str, first: str, unit: str = "", digits: int = 2) -> str:
    """Compare two arms over seeds."""
    n = len(paired.differences)
    if n == 0:
        return f"{what}: no seed has both arms."
    unit = f" {unit}" if unit else ""
    change = f"{paired.mean:+.{digits}f}{unit}".replace("-", "−")
    if n == 1:
        return f"{what}, {second} against {first}: {change} in the only seed; one seed shows no spread."
    low, high = (
        f"{value:+.{digits}f}".replace("-", "−") for value in (min(paired.differences), max(paired.differences))
    )
    lower = sum(d < 0 for d in paired.differences)
    sides = (
        f"lower in {lower} of {n} seeds"
        if lower
        else f"higher in {sum(d > 0 for d in paired.differences)} of {n} seeds"
    )
    end = "" if paired.same_sign else " The seeds disagree about the direction: these runs do not settle it."
    return (
        f"{what}, {second} against {first}, paired by seed: {change} on average "
        f"(from {low} to {high}, standard deviation {paired.deviation:.{digits}f}), {sides}.{end}"
    )


def live_sentence(what: str, value: float, paired: Paired, *, unit: str = "", digits: int = 2) -> str:
    """Compare this run's difference with those of the study."""
    unit = f" {unit}" if unit else ""
    text = f"{what}: {value:+.{digits}f}{unit} in this run".replace("-", "−")
    if len(paired.differences) < 2:
        return text + "."
    inside = min(paired.differences) <= value <= max(paired.differences)
    place = "within" if inside else "outside"
    return f"{text}, {place} the range of the {len(paired.differences)} precomputed seeds."
