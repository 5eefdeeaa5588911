"""The command ``sfkit rank-layers``: compare student layers before choosing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sfkit_tools.layer_ranking import Measure, Ranking


def rank_layers(  # noqa: PLR0917 - Typer makes an option of each parameter
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:function or file.py:function: takes nothing, returns (policy, batch), and after them, "
            "if need be, an adapter and a CameraRig.",
        ),
    ],
    teacher: Annotated[str, typer.Option(help="`sfkit teachers` lists them.")],
    teacher_options: Annotated[str, typer.Option(help="Its options, as key=value,key=value.")] = "",
    teacher_layer: Annotated[
        int | None, typer.Option(help="The teacher's layer; its default by default.", min=1)
    ] = None,
    count: Annotated[int, typer.Option(help="How many layers for choices of several.", min=1)] = 4,
    resamples: Annotated[int, typer.Option(help="Resamples of the bootstrap over samples.", min=20)] = 200,
    plot: Annotated[Path | None, typer.Option(help="Write a chart: .svg, .png or .pdf.")] = None,
) -> None:
    """Rank student layers by similarity to the teacher (CKA) and, where depth is known, by a ridge probe of depth."""
    from sfkit.cli.console import parse_options, plain_console
    from sfkit.views.cameras import CameraRig
    from sfkit_tools import layer_ranking
    from sfkit_tools.loading import load_target

    if plot is not None:
        _check_format(plot)
    policy, batch, *rest = load_target(target)
    ranking = layer_ranking.rank_layers(
        policy, batch, (teacher, parse_options(teacher_options)), teacher_layer=teacher_layer, resamples=resamples,
        adapter=next((each for each in rest if not isinstance(each, CameraRig)), None),
        cameras=next((each for each in rest if isinstance(each, CameraRig)), None),
    )  # fmt: skip
    print_ranking(ranking, count, plain_console(highlight=False))
    if plot is not None:
        layer_ranking.chart(ranking).savefig(plot)


def print_ranking(ranking: Ranking, count: int, console: Console) -> None:
    """Print the table, the layers that resampling cannot separate, and choices of several layers."""
    from rich.table import Table

    from sfkit.cli.console import titled
    from sfkit_tools.layer_ranking import end_anchored, uniform

    known = ranking.layers[0].probe is not None
    table = Table("student layer", f"CKA to {ranking.teacher}", "best in", box=None)
    if known:
        table.add_column("depth probe, R²")
        table.add_column("best in")
    for rank in ranking.layers:
        row = [str(rank.student_layer), *_cells(rank.cka)]
        table.add_row(*row, *(_cells(rank.probe) if rank.probe is not None else ()))
    measured = f": {ranking.samples} samples, {ranking.tokens} tokens; 90 % intervals by resampling"
    console.print(titled(ranking.policy, measured))
    console.print(table)
    for by, name in (("cka", "CKA"), ("probe", "the depth probe"))[: 2 if known else 1]:
        others = [str(layer) for layer in ranking.rivals(by) if layer != ranking.best(by)]
        doubt = f"not separable from {', '.join(others)}" if others else "separable from all others"
        console.print(f"Best by {name}: student layer {ranking.best(by)}, {doubt}.")
    blocks = ranking.blocks
    if count < blocks:
        console.print(f"{count} layers, uniform: {', '.join(map(str, uniform(blocks, count)))}")
        console.print(f"{count} layers, end-anchored: {', '.join(map(str, end_anchored(blocks, count)))}")


def _check_format(plot: Path) -> None:
    """Check the format of the chart before the policy runs, which may take minutes."""
    from matplotlib.backend_bases import FigureCanvasBase

    from sfkit.errors import ConfigError

    formats = FigureCanvasBase.get_supported_filetypes()
    if plot.suffix[1:] not in formats:
        raise ConfigError(f"--plot {plot} names no format of a chart.", f"End it with one of: {', '.join(formats)}.")


def _cells(measure: Measure) -> tuple[str, str]:
    return f"{measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})", f"{measure.best:.0%}"
