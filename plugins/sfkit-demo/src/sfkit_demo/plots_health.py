"""The health of the aligned arm, as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sfkit.health.report import Health
from sfkit_demo.plots import COLORS, GRAY, STYLE, png

_COLORS = (COLORS["aligned"], COLORS["plain"], COLORS["shuffled"])
#: Lines of a panel, each with its values by measurement.
Lines = Mapping[str, Sequence[float]]


def health_section(reports: Sequence[Health]) -> str:
    """The figure, and below it the warnings of the monitor."""
    if not reports:
        return "<p>There are no measurements.</p>"
    warned = reports[-1].warnings
    said = (
        "<ul>" + "".join(f"<li>{escape(message)}</li>" for message in warned) + "</ul>"
        if warned
        else "<p>There are no warnings.</p>"
    )
    caption = (
        f"Measured at {len(reports)} of the steps. The gradients are those of the two losses at the tapped tokens: "
        "above the line of the first panel alignment dominates, below that of the second it opposes the action loss. "
        "Drift is the change of the tokens' distribution since the start of the run, in standard deviations at the "
        "start, beside the difference of two batches without training. The last panel compares how well a patch's own "
        "token and a neighboring token predict its target."
    )
    alt = "Gradients, cosines, drift, rank, norms, projector and spatial correspondence by step"
    return (
        f'<figure class="card"><img src="{health_figure(reports)}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>{said}"
    )


def health_figure(reports: Sequence[Health]) -> str:
    """Eight panels by step, of the first pair, as PNG data."""
    steps = [report.step or 0 for report in reports]
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        panels = figure.subplots(2, 4).flat
        for axes, (title, lines) in zip(panels, _panels(reports).items(), strict=True):
            _panel(axes, title, steps, lines)
        figure.axes[0].axhline(1.0, color=GRAY, lw=0.8)
        figure.axes[1].axhline(-0.2, color=GRAY, lw=0.8)
        for axes in figure.axes[4:]:
            axes.set_xlabel("step")
        return png(figure)


def _panels(reports: Sequence[Health]) -> dict[str, Lines]:
    pairs = [report.pairs[0] for report in reports]
    layers = [report.layers[0] for report in reports]
    return {
        "Gradient ratio": {"": [report.ratio for report in reports]},
        "Gradient cosine": {"": [report.cosine for report in reports]},
        "Cosine to the target": {view: [pair.cosine[view] for pair in pairs] for view in pairs[-1].cosine},
        "Drift of the tokens": {
            "drift": [layer.drift for layer in layers], "two batches": [layer.drift_noise for layer in layers],
        },
        "Effective rank": {"projected": [pair.rank for pair in pairs], "target": [pair.target_rank for pair in pairs]},
        "Mean norms": {
            "tokens": [pair.token_norm for pair in pairs], "projected": [pair.projected_norm for pair in pairs],
            "target": [pair.target_norm for pair in pairs],
        },
        "Shares": {
            "projector moved": [report.projector_movement for report in reports],
            "tokens valid": [pair.valid for pair in pairs],
        },
        "Error of the target": {
            "own token": [pair.aligned_error for pair in pairs],
            "one patch away": [pair.shifted_error for pair in pairs],
        },
    }  # fmt: skip


def _panel(axes: Axes, title: str, steps: Sequence[int], lines: Lines) -> None:
    for (label, values), color in zip(lines.items(), (*_COLORS, GRAY) * len(lines), strict=False):
        axes.plot(steps, values, color=color, label=label, marker="." if len(steps) < 4 else None)
    axes.set_title(title)
    axes.grid(axis="y", color=GRAY, alpha=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if len(lines) > 1:
        axes.legend(fontsize=7.5)
