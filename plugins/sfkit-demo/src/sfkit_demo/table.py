"""The table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sfkit_demo.comparison import Comparison, table_lines
from sfkit_demo.study import is_studied
from sfkit_demo.teacher import teacher_note


def print_table(comparison: Comparison, console: Console) -> None:
    """Print every quantity for the mean predictor, the untrained policy and both arms."""
    settings, plain = comparison.settings, comparison.plain
    caption = "arrows point to the better side; one seed proves nothing"
    if is_studied(settings):
        caption += ": the report shows the spread over seeds"
    note = teacher_note(settings.teacher)
    table = Table(
        title=f"{settings.steps} steps, seed {settings.seed}, {plain.frames[1]} frames of held-out episodes",
        caption=f"{caption}. {note}" if note else caption,
        title_justify="left",
        caption_justify="left",
    )
    for column in ("", "mean predictor", "untrained", "plain", "aligned"):
        table.add_column(column, justify="right" if column else "left")
    for line in table_lines(comparison):
        arrow = {"lower": " ↓", "higher": " ↑", "": ""}[line.better]
        table.add_row(line.title + arrow, *line.texts())
    console.print(table)
