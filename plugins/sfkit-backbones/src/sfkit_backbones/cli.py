"""The command ``sfkit parity``: compare a port with its reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def parity(  # noqa: PLR0917 - Typer makes an option of each parameter
    fixture: Annotated[Path, typer.Argument(help="The fixture; with --record, the file to write.")],
    tolerance: Annotated[
        float, typer.Option(help="Largest difference that passes, in parts of an output's largest value.", min=0.0)
    ] = 1e-5,
    record: Annotated[bool, typer.Option("--record", help="Write a fixture for --teacher instead.")] = False,
    teacher: Annotated[str | None, typer.Option(help="With --record: the teacher whose backbone is recorded.")] = None,
    teacher_options: Annotated[str, typer.Option(help="Its options, as key=value,key=value.")] = "config=tiny",
    seed: Annotated[int, typer.Option(help="With --record: seed of weights and inputs.", min=0)] = 0,
    stream: Annotated[
        float, typer.Option(help="With --record: scale of the residual stream; 0.003 shows a wrong epsilon.", min=0.0)
    ] = 1.0,
) -> None:
    """Compare with the recorded outputs of a reference, case by case; exit status 1 above the tolerance."""
    if record:
        _record(fixture, teacher, teacher_options, seed, stream)
    elif not _compare(fixture, tolerance):
        raise typer.Exit(1)


def _record(path: Path, teacher: str | None, options: str, seed: int, stream: float) -> None:
    from sfkit.cli.console import parse_options
    from sfkit.errors import ConfigError
    from sfkit.factory.components import build_teacher
    from sfkit_backbones.parity import record

    if teacher is None:
        raise ConfigError("--record needs a teacher.", "Add --teacher NAME; `sfkit teachers` lists them.")
    record(build_teacher((teacher, parse_options(options))), path, seed=seed, stream=stream)
    typer.echo(f"Recorded {path}.")


def _compare(path: Path, tolerance: float) -> bool:
    from sfkit.cli.console import plain_console
    from sfkit_backbones.parity import Difference, Fixture, compare

    console = plain_console(highlight=False)
    loaded = Fixture.load(path)
    console.print(f"{loaded.model}: {len(loaded.cases)} cases, tolerance {tolerance:g}")
    width = max(len(f"{name}  {key}") for name, case in loaded.cases.items() for key in case.outputs)

    def print_row(found: Difference) -> None:
        passed = found.error <= tolerance
        note = f"  {found.note}" if found.note else f"  (values up to {found.scale:.3g})"
        line = f"{found.case}  {found.output}".ljust(width) + f"  {found.error:.2e}{note}"
        console.print(line, style=None if passed else "bold red", soft_wrap=True)

    differences = compare(loaded, print_row)
    worst = max(difference.error for difference in differences)
    passed = worst <= tolerance
    console.print(f"{'PASSED' if passed else 'FAILED'}: largest relative difference {worst:.2e}", style="bold")
    return passed
