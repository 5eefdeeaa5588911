"""The csv files of the seed study: ``benchmarks.seeds`` writes them, and the report reads them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median, stdev

from sfkit.errors import ConfigError
from sfkit_demo.evaluate import Metrics
from sfkit_demo.run import ArmResult
from sfkit_demo.settings import Settings
from sfkit_demo.teacher import is_geometry

CURVES = "curves.csv"
UNTRAINED = "untrained"
#: The policy of the study. Its teacher is geometry.
STUDIED = "smolvla"
_NAMES = ("arm", "torch", "lerobot")
_REQUIRED = ("seed", "arm", "steps", "flow_loss", "object_cm", "goal_cm", "cosine", "seconds_per_step")
#: Points of a curve in the csv file; each is the mean over the steps since the previous point.
_POINTS = 20

Row = Mapping[str, float | str]


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds.

    Attributes:
        mean: Over the seeds.
        deviation: Sample standard deviation over the seeds; NaN for a single one.
        values: By seed.
    """

    mean: float
    deviation: float
    values: Mapping[int, float]


def spread(rows: Sequence[Row], arm: str, column: str) -> Spread:
    """A column of one arm over its seeds."""
    values = {int(row["seed"]): float(row[column]) for row in rows if row["arm"] == arm and column in row}
    finite = list(values.values())
    return Spread(fmean(finite) if finite else math.nan, stdev(finite) if len(finite) > 1 else math.nan, values)


def read_rows(path: Path) -> list[Row]:
    """Rows of a results or curves file, with parsed numbers; empty if the file is absent.

    Raises:
        ConfigError: The file has other columns, or a damaged row.
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = {"seed", "arm"} - set(reader.fieldnames or ())
        if missing:
            raise ConfigError(
                f"{path} has no column {', '.join(sorted(missing))}.", "It is not a file of the seed study."
            )
        try:
            return [{key: _value(key, text) for key, text in row.items()} for row in reader]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {reader.line_num}: {error}", "The row is damaged: delete it.") from None


def read_results(path: Path) -> list[Row]:
    """Rows of a results file, for the report.

    Raises:
        ConfigError: A column of the report is missing.
    """
    rows = read_rows(path)
    missing = [column for column in _REQUIRED if rows and column not in rows[0]]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}.", "Run the study again with this version.")
    return rows


def is_studied(settings: Settings) -> bool:
    """Whether the study has the policy and the teacher of this run."""
    return settings.policy == STUDIED and is_geometry(settings.teacher)


def append_result(path: Path, result: ArmResult, settings: Settings) -> None:
    """Append a finished run: its rows to the results file, and its curve to the curves file in the same folder."""
    rows = []
    if result.untrained is not None:
        rows.append(_row(UNTRAINED, result.untrained, result, settings, trained=False))
    rows.append(_row(result.arm, result.metrics, result, settings, trained=True))
    _append(path.with_name(CURVES), curve_rows(result))
    # The row is written last: it marks the run as finished.
    _append(path, rows)


def curve_rows(result: ArmResult) -> list[Row]:
    """The curve of a run, at a few points."""
    curves, steps = result.curves, len(result.curves.action_loss)
    edges = sorted({round(steps * (i + 1) / _POINTS) for i in range(_POINTS)} - {0})
    rows: list[Row] = []
    for start, end in zip([0, *edges[:-1]], edges, strict=True):
        cosine = fmean(curves.cosine[start:end]) if curves.cosine else math.nan
        loss = fmean(curves.action_loss[start:end])
        rows.append(
            _rounded({"seed": result.seed, "arm": result.arm, "step": end, "action_loss": loss, "cosine": cosine})
        )
    return rows


def _row(arm: str, metrics: Metrics, result: ArmResult, settings: Settings, *, trained: bool) -> Row:
    curves = result.curves
    tail = curves.cosine[-max(1, len(curves.cosine) // 20) :]
    return _rounded(
        {
            "seed": result.seed,
            "arm": arm,
            "steps": settings.steps,
            "flow_loss": metrics.flow_loss,
            "object_cm": metrics.object_cm,
            "goal_cm": metrics.goal_cm,
            **{f"depth_r2_{camera}": value for camera, value in metrics.depth_r2.items()},
            **{f"depth_rmse_cm_{camera}": value for camera, value in metrics.depth_rmse_cm.items()},
            "cosine": metrics.cosine,
            "training_cosine": fmean(tail) if tail and trained else math.nan,
            "seconds_per_step": median(curves.seconds) if trained else math.nan,
            "mean_object_cm": result.mean.object_cm,
            "mean_goal_cm": result.mean.goal_cm,
            "student_layer": settings.student_layer,
            "weight": settings.weight,
            "torch": version("torch"),
            "lerobot": version("lerobot"),
            "cores": os.cpu_count() or 1,
        }
    )


def _rounded(row: Mapping[str, float | str]) -> Row:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def _value(key: str, text: str | None) -> float | str:
    if text is None:
        raise ValueError("the row is too short")
    return text if key in _NAMES else float(text)


def _append(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    if not new:
        with path.open(newline="") as file:
            columns = csv.DictReader(file).fieldnames
        if columns != list(rows[0]):
            raise ConfigError(f"{path} has other columns than this version writes.", "Name another file with --out.")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
