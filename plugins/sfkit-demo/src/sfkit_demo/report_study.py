"""The report's section on the precomputed seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from html import escape

from sfkit.config import ComponentSpec
from sfkit.factory.components import build_teacher
from sfkit_demo import plots
from sfkit_demo.comparison import Comparison
from sfkit_demo.settings import POLICIES
from sfkit_demo.study import STUDIED, UNTRAINED, Row, is_studied, spread
from sfkit_demo.wording import Paired, paired_sentence

COMMAND = "python -m benchmarks.seeds"
_ARMS = ("untrained", "plain", "shuffled", "geometry")
#: The last pair isolates geometry: both arms have the same loss, and only one has the targets of the right frame.
_COMPARED = (("plain", "geometry"), ("plain", "shuffled"), ("shuffled", "geometry"))


@dataclass(frozen=True)
class Quantity:
    """A quantity of this run and of the study, for sentences.

    Attributes:
        title: Its name.
        column: Its column in the study.
        unit: Its unit.
        better: ``"lower"`` or ``"higher"``.
        digits: Digits after the decimal point.
        plain: Value of this run's plain arm.
        aligned: Value of this run's aligned arm.
        paired: The study's differences, geometry minus plain, with the settings of this run.
    """

    title: str
    column: str
    unit: str
    better: str
    digits: int
    plain: float
    aligned: float
    paired: Paired = field(default_factory=Paired)


def tracked(comparison: Comparison) -> list[Quantity]:
    """The main quantities of the report; depth is that of the last camera."""
    plain, aligned = comparison.plain.metrics, comparison.aligned.metrics
    camera = list(plain.depth_r2)[-1]
    depth_plain, depth_aligned = plain.depth_r2[camera], aligned.depth_r2[camera]
    depth_title, depth_column = f"Residual depth, {camera} (R²)", f"depth_r2_{camera}"
    found = [
        Quantity("Object position", "object_cm", "cm", "lower", 2, plain.object_cm, aligned.object_cm),
        Quantity(depth_title, depth_column, "", "higher", 2, depth_plain, depth_aligned),
        Quantity("Held-out action loss", "flow_loss", "", "lower", 3, plain.flow_loss, aligned.flow_loss),
    ]
    rows = [row for row in comparison.study if _same_run(row, comparison)]
    return [replace(one, paired=Paired.of(rows, "plain", "geometry", one.column)) for one in found]


def _same_run(row: Row, comparison: Comparison) -> bool:
    """Whether a row of the study has the settings of this run, apart from the seed."""
    settings = comparison.settings
    alike = all(row.get(name) == getattr(settings, name) for name in ("steps", "student_layer", "weight"))
    default_teacher = ComponentSpec.of(settings.teacher) == ComponentSpec(name="geometry")
    return alike and is_studied(settings) and default_teacher


def study_section(comparison: Comparison) -> str:
    """Dots for each seed, a table of means, and sentences computed from them."""
    settings = comparison.settings
    if not is_studied(settings):
        teacher = build_teacher(settings.teacher).name
        return (
            f"<p>A single run can land either way. The precomputed seeds are of {POLICIES[STUDIED]} with the geometry "
            f"teacher, so they say nothing about this run, of {POLICIES[settings.policy]} with the "
            f"<em>{escape(teacher)}</em> teacher: run it with several <code>--seed</code>.</p>"
        )
    rows = _longest(comparison.study)
    arms = [arm for arm in _ARMS if any(row["arm"] == arm for row in rows)]
    if not {"plain", "geometry"} <= set(arms):
        return (
            "<p>No precomputed seeds were found. One seed can land either way: make them with "
            f"<code>{COMMAND}</code> in a checkout of the repository (about half an hour on two cores), "
            "and run the demo there again.</p>"
        )
    seeds = sorted({int(row["seed"]) for row in rows})
    steps = int(rows[0]["steps"])
    quantities = [quantity for quantity in tracked(comparison) if quantity.column in rows[0]]
    figure = plots.seeds_figure(rows, {q.column: _axis_title(q) for q in quantities}, arms)
    sentences = []
    for quantity in quantities:
        for first, second in _COMPARED:
            if first in arms and second in arms:
                paired = Paired.of(rows, first, second, quantity.column)
                text = paired_sentence(
                    quantity.title,
                    paired,
                    second=second,
                    first=first,
                    unit=quantity.unit,
                    digits=quantity.digits,
                )
                sentences.append(f"<li>{escape(text)}</li>")
    seed_list = " ".join(str(seed) for seed in seeds)
    trained = " ".join(arm for arm in arms if arm != UNTRAINED)
    command = f"{COMMAND} --seeds {seed_list} --arms {trained} --steps {steps}"
    return (
        f"<p>A single run can land either way, so here are {len(seeds)} precomputed seeds of {steps} steps each, made "
        "by the same code on the same split. <em>Shuffled</em> is a control: it is aligned with the same geometry "
        "targets, but with those of <em>another</em> frame of the batch. Its gain comes from the additional loss, "
        "and not from geometry.</p>"
        f'<figure class="card"><img src="{figure}" alt="Dots for each seed and arm"><figcaption>One dot for each seed; '
        "bars are means; lines join the runs of one seed. The table below gives standard deviations over seeds."
        "</figcaption></figure>"
        f'<div class="wide">{_means(rows, arms)}</div><ul>{"".join(sentences)}</ul>'
        f'<p class="soft">Made with:</p><pre><code>{command}</code></pre>'
    )


def _longest(rows: tuple[Row, ...]) -> list[Row]:
    """Rows of the longest runs; files may hold shorter trials."""
    longest = max((float(row["steps"]) for row in rows), default=0.0)
    return [row for row in rows if float(row["steps"]) == longest]


def _axis_title(quantity: Quantity) -> str:
    return f"{quantity.title}, {quantity.unit}" if quantity.unit else quantity.title


def _means(rows: list[Row], arms: list[str]) -> str:
    columns = [("flow_loss", "action loss", 3), ("object_cm", "object, cm", 2), ("goal_cm", "goal, cm", 2)]
    columns += [(name, f"depth R², {name[9:]}", 2) for name in rows[0] if name.startswith("depth_r2_")]
    columns.append(("cosine", "cosine", 3))
    head = "".join(f"<th>{escape(title)}</th>" for _, title, _ in columns)
    body = []
    for arm in arms:
        cells = []
        for column, _, digits in columns:
            found = spread(rows, arm, column)
            deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.{digits}f}"
            cells.append(f"<td>{found.mean:.{digits}f}{deviation}</td>")
        kind = {"plain": ' class="plain"', "geometry": ' class="aligned"'}.get(arm, "")
        body.append(f"<tr><td{kind}>{arm}</td>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th>mean ± deviation</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
