"""The finished comparison, and the rows of the table in terminal and report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from sfkit_demo.evaluate import Metrics
from sfkit_demo.run import ArmResult
from sfkit_demo.settings import Settings
from sfkit_demo.study import Row


@dataclass(frozen=True)
class Comparison:
    """Both arms of one seed, and the rows of the seed study.

    Attributes:
        settings: Settings of both arms.
        plain: The arm without a teacher; it includes the metrics of the untrained policy.
        aligned: The arm with a teacher.
        study: Rows of the seed study; empty where there is none.
        seconds: Wall time of both arms together.
    """

    settings: Settings
    plain: ArmResult
    aligned: ArmResult
    study: tuple[Row, ...]
    seconds: float


@dataclass(frozen=True)
class Line:
    """One quantity of the table.

    Attributes:
        title: Name of the quantity, with its unit.
        better: ``"lower"``, ``"higher"`` or ``""``.
        digits: Digits after the decimal point.
        mean: Value of the mean predictor; NaN where it has none.
        untrained: Value before the first step.
        plain: Value after training without a teacher.
        aligned: Value after training with a teacher.
    """

    title: str
    better: str
    digits: int
    mean: float
    untrained: float
    plain: float
    aligned: float

    def texts(self) -> tuple[str, str, str, str]:
        """The four figures as shown."""
        return tuple(self._text(v) for v in (self.mean, self.untrained, self.plain, self.aligned))  # type: ignore[return-value]

    def _text(self, value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.{self.digits}f}"


def table_lines(comparison: Comparison) -> list[Line]:
    """Every quantity, in the order in which it is shown."""
    plain, aligned = comparison.plain, comparison.aligned
    untrained = plain.untrained or plain.metrics

    def line(title: str, better: str, digits: int, pick: str, camera: str = "") -> Line:
        values = [_value(m, pick, camera) for m in (plain.mean, untrained, plain.metrics, aligned.metrics)]
        return Line(title, better, digits, *values)

    lines = [
        line("held-out action loss", "lower", 3, "flow_loss"),
        line("object position error, cm", "lower", 2, "object_cm"),
        line("goal position error, cm", "lower", 2, "goal_cm"),
    ]
    for camera in plain.metrics.depth_r2:
        lines.append(line(f"{camera} residual depth, R²", "higher", 2, "depth_r2", camera))
        lines.append(line(f"{camera} depth error, cm", "lower", 2, "depth_rmse_cm", camera))
    lines.append(line("cosine to the teacher", "higher", 3, "cosine"))
    seconds = [median(arm.curves.seconds) for arm in (plain, aligned)]
    lines.append(Line("seconds per step", "lower", 3, math.nan, math.nan, *seconds))
    return lines


def _value(metrics: Metrics, name: str, camera: str) -> float:
    value = getattr(metrics, name)
    return float(value[camera] if camera else value)
