"""Figures of the report, as PNG data for an HTML page: transparent, in colors that work on white and on black."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from sfkit_demo.run import ArmResult
from sfkit_demo.study import UNTRAINED, Row, spread

#: Depth beyond this many meters is background, which the geometry teacher masks too.
_FAR = 10.0
GRAY = "#8b909a"
COLORS = {"untrained": GRAY, "plain": "#e08a2e", "shuffled": "#9d74d6", "aligned": "#2f8fdd", "geometry": "#2f8fdd"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": GRAY,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "legend.frameon": False,
}


def data_uri(image: Image.Image) -> str:
    """An image as the ``src`` of an ``img``."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_uri(image: NDArray[np.uint8]) -> str:
    """``(h, w, 3)`` pixels as PNG data."""
    return data_uri(Image.fromarray(image))


def colors_uri(colors: NDArray[np.float32]) -> str:
    """``(gh, gw, 3)`` in [0, 1] as PNG data, one pixel per token; NaN is transparent. The page enlarges it."""
    known = np.isfinite(colors).all(-1)
    rgb = (np.nan_to_num(colors) * 255).round().astype(np.uint8)
    return data_uri(Image.fromarray(np.dstack([rgb, np.where(known, 255, 0).astype(np.uint8)])))


def depth_uri(depth: NDArray[np.float32]) -> tuple[str, float, float]:
    """``(h, w)`` meters in a logarithmic color scale, bright where near, transparent where unknown (0) or too far.

    Returns:
        The image, and the range of its color scale in meters.
    """
    known = np.isfinite(depth) & (depth > 0) & (depth < _FAR)
    if not known.any():
        return data_uri(Image.new("RGBA", (depth.shape[1], depth.shape[0]))), math.nan, math.nan
    near, far = np.percentile(depth[known], [1, 99])
    ratio = np.log(np.where(known, depth, near) / near) / max(np.log(far / near), 1e-6)
    scaled = np.clip(ratio, 0, 1)
    rgba = (colormaps["magma_r"](scaled * 0.9) * 255).astype(np.uint8)
    rgba[..., 3] = np.where(known, 255, 0)
    return data_uri(Image.fromarray(rgba)), float(near), float(far)


def curves_figure(plain: ArmResult, aligned: ArmResult) -> str:
    """Action loss in training and on held-out episodes, and the alignment cosine, by step."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        training, held_out, cosine = figure.subplots(1, 3)
        for arm in (plain, aligned):
            color = COLORS[arm.arm]
            steps, smooth = smoothed(arm.curves.action_loss)
            training.plot(steps, smooth, color=color, label=arm.arm)
            held_out.plot(
                arm.curves.held_out_steps, arm.curves.held_out_loss, color=color, marker="o", ms=3.5, label=arm.arm
            )
        steps, smooth = smoothed(aligned.curves.cosine)
        cosine.plot(steps, smooth, color=COLORS["aligned"])
        for axes, title in (
            (training, "Action loss, training batches"),
            (held_out, "Action loss, held-out frames"),
            (cosine, "Alignment cosine, aligned arm"),
        ):
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.grid(axis="y", color=GRAY, alpha=0.2)
        for axes in (training, held_out):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:.2g}")
            axes.yaxis.set_minor_formatter("{x:.2g}")
            axes.tick_params(axis="y", which="minor", labelsize=8)
        training.legend()
        return png(figure)


def seeds_figure(rows: Sequence[Row], columns: Mapping[str, str], arms: Sequence[str]) -> str:
    """One panel for each column: a dot for each seed and arm, and lines between the runs of a seed."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.0), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(columns)))
        for axes, (column, title) in zip(panels, columns.items(), strict=True):
            # The untrained policy's loss is so large that it would compress the range of the others.
            shown = [arm for arm in arms if not (arm == UNTRAINED and column == "flow_loss")]
            _seed_panel(axes, rows, column, shown)
            axes.set_title(title)
        return png(figure)


def _seed_panel(axes: Axes, rows: Sequence[Row], column: str, arms: Sequence[str]) -> None:
    by_arm = {arm: spread(rows, arm, column) for arm in arms}
    shared = set.intersection(*(set(found.values) for found in by_arm.values()))
    for seed in sorted(shared):
        axes.plot(range(len(arms)), [by_arm[arm].values[seed] for arm in arms], color=GRAY, alpha=0.35, lw=0.8)
    for place, arm in enumerate(arms):
        values = list(by_arm[arm].values.values())
        axes.plot([place] * len(values), values, "o", ms=5, color=COLORS.get(arm, GRAY), alpha=0.85)
        axes.plot([place - 0.22, place + 0.22], [by_arm[arm].mean] * 2, color=COLORS.get(arm, GRAY), lw=2)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.grid(axis="y", color=GRAY, alpha=0.2)


def smoothed(values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle step and the mean value of about forty equal parts of a curve."""
    if not values:
        return np.empty(0), np.empty(0)
    parts = np.array_split(np.asarray(values, dtype=float), min(40, len(values)))
    ends = np.cumsum([len(part) for part in parts])
    middles = ends - np.array([len(part) for part in parts]) / 2
    return middles, np.array([part.mean() for part in parts])


def png(figure: Figure) -> str:
    """A figure as the ``src`` of an ``img``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
