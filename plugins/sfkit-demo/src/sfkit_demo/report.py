"""The report: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from sfkit.factory.components import build_teacher
from sfkit_demo import plots
from sfkit_demo.comparison import Comparison, Line, table_lines
from sfkit_demo.images import Images
from sfkit_demo.meaning import details, meaning
from sfkit_demo.plots_health import health_section
from sfkit_demo.report_study import study_section, tracked
from sfkit_demo.settings import POLICIES
from sfkit_demo.teacher import public_name, teacher_note
from sfkit_demo.wording import live_sentence

FILE = "report.html"


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write ``report.html`` into a folder.

    Args:
        comparison: The comparison.
        folder: The folder; created if missing.

    Returns:
        Absolute path of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / FILE).absolute()
    path.write_text(render(comparison), encoding="utf-8")
    return path


def render(comparison: Comparison) -> str:
    """The HTML page."""
    template = Template((files("sfkit_demo") / "page.html").read_text(encoding="utf-8"))
    plain, aligned, settings = comparison.plain, comparison.aligned, comparison.settings
    return template.substitute(
        lead=_lead(comparison),
        cards=_cards(comparison),
        table_intro=(
            f"On {plain.frames[1]} frames of held-out episodes, from the state at the end of training. "
            "Arrows point to the better side. Both arms start from the untrained policy. The mean predictor always "
            "outputs the training mean: a policy whose tokens hold no information scores as it does."
        ),
        table=_table(table_lines(comparison)),
        images_intro=(
            "Each small square is one visual token. Its color shows the three principal components of all tokens of "
            "that column, minus the mean of each position. Colors are comparable within a column, and not between "
            "columns: compare the <em>layout</em> of the colors with the depth."
        ),
        images=_images(plain.images, aligned.images),
        curves=plots.curves_figure(plain, aligned),
        curves_alt="Action loss of both arms in training and on held-out frames, and the alignment cosine, by step",
        curves_caption=(
            f"Both arms saw the same {settings.steps} batches in the same order and drew the same noise and times; "
            "the state of the random generator after the last step was compared and is the same. "
            "Training losses and cosine are averaged over stretches of steps; the held-out loss is on a fixed subset "
            "with fixed noise. The cosine is the projector's own, on training batches."
        ),
        health=health_section(aligned.curves.health),
        study=study_section(comparison),
        meaning=meaning(comparison),
        details=details(comparison),
    )


def _lead(comparison: Comparison) -> str:
    settings, plain = comparison.settings, comparison.plain
    teacher = build_teacher(settings.teacher)
    tasks = len(plain.images.tasks) if plain.images else 0
    return (
        f"A small {POLICIES[settings.policy]} ({plain.parameters / 1e6:.1f} M parameters, random weights) was trained "
        f"twice on {tasks} Meta-World tasks from seed {settings.seed}, for {settings.steps} steps: "
        '<strong class="plain">plain</strong>, and <strong class="aligned">aligned</strong> with the '
        f"<em>{escape(public_name(teacher))}</em> teacher at student layer {settings.student_layer} with weight "
        f"{settings.weight:g}. Everything else is the same. "
        f"Both arms together took {comparison.seconds / 60:.1f} minutes. "
        f"{escape(teacher_note(teacher))}"
    )


def _cards(comparison: Comparison) -> str:
    cards = []
    for quantity in tracked(comparison):
        plain, aligned = (f"{value:.{quantity.digits}f}" for value in (quantity.plain, quantity.aligned))
        note = live_sentence(
            "Difference",
            quantity.aligned - quantity.plain,
            quantity.paired,
            unit=quantity.unit,
            digits=quantity.digits,
        )
        unit = f"<small>{quantity.unit}</small>" if quantity.unit else ""
        better = {"lower": "lower is better", "higher": "higher is better"}[quantity.better]
        cards.append(
            f'<div class="card"><div class="what">{escape(quantity.title)}, {better}</div>'
            f'<div class="values"><span class="plain">{plain}</span><span class="arrow">→</span>'
            f'<span class="aligned">{aligned}</span>{unit}</div>'
            f'<div class="note">{escape(note)}</div></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        arrow = {"lower": " ↓", "higher": " ↑", "": ""}[line.better]
        mean, untrained, plain, aligned = line.texts()
        rows.append(
            f"<tr><td>{escape(line.title)}{arrow}</td><td>{mean}</td><td>{untrained}</td>"
            f'<td class="plain">{plain}</td><td class="aligned">{aligned}</td></tr>'
        )
    head = "<th></th><th>mean predictor</th><th>untrained</th><th>plain</th><th>aligned</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _images(plain: Images | None, aligned: Images | None) -> str:
    if plain is None or aligned is None:
        return "<p>There are no images.</p>"
    heads = ["", "camera", "depth", "teacher", "tokens, plain", "tokens, aligned"]
    cells = [f'<div class="head">{head}</div>' for head in heads]
    for frame, task in enumerate(plain.tasks):
        for view, name in enumerate(plain.names):
            uri, near, far = plots.depth_uri(plain.depth[frame, view])
            label = escape(task) if view == 0 else ""
            cells.append(f'<div class="name">{label}<span>{escape(name)}, {near:.2f} to {far:.2f} m</span></div>')
            cells.append(_image(plots.image_uri(plain.images[frame, view]), f"{name} image: {task}", photo=True))
            cells.append(_image(uri, f"{name} depth, {near:.2f} to {far:.2f} m"))
            for owner, colors in (
                ("teacher", plain.teacher), ("plain policy", plain.student), ("aligned policy", aligned.student)
            ):  # fmt: skip
                cells.append(_image(plots.colors_uri(colors[frame, view]), f"PCA colors of the {owner}, {name}"))
    caption = (
        "One held-out frame of each task and both cameras. Depth is bright where near; checkered where it is unknown "
        "or where the teacher gives no target. The policy itself sees the images only."
    )
    return (
        f'<figure class="card"><div class="wide"><div class="grid">{"".join(cells)}</div></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _image(uri: str, alt: str, *, photo: bool = False) -> str:
    kind = ' class="photo"' if photo else ""
    return f'<img{kind} src="{uri}" alt="{escape(alt)}">'
