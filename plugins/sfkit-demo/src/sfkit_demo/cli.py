"""The command ``sfkit demo``: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfkit_demo


def demo(  # noqa: PLR0917 - Typer makes an option of each parameter
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each arm.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches, noise and times, for both arms.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and its figures.")] = Path("sfkit-demo"),
    data: Annotated[
        Path | None,
        typer.Option(help="LeRobot dataset with depth, calibration and labels; the shipped one by default."),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="smolvla, pi0 or pi05: LeRobot's own classes, small, from scratch.")
    ] = "smolvla",
    teacher: Annotated[str, typer.Option(help="The aligned arm's teacher; `sfkit teachers` lists them.")] = "geometry",
    teacher_options: Annotated[
        str, typer.Option(help="Options of the teacher as k=v,k=v; `sfkit teachers NAME` lists them.")
    ] = "",
    preset: Annotated[str | None, typer.Option(help="A published method; `sfkit presets` lists them.")] = None,
    objective: Annotated[str | None, typer.Option(help="The alignment objective; cosine by default.")] = None,
    weight: Annotated[float | None, typer.Option(min=0, help="Weight of the loss; the preset's, or 0.5.")] = None,
    student_layer: Annotated[
        int, typer.Option(min=0, max=6, help="Residual stream after this many of the six blocks.")
    ] = 4,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at a time (0: everything in this process).")] = 2,
) -> None:
    """Train a small policy twice from one seed, plain and aligned, and compare on held-out episodes.

    Both arms get the same batches and draw the same noise. The command prints a table and writes one HTML file that
    needs no network. It takes some minutes on two cores.
    """
    from sfkit_demo.compare import compare
    from sfkit_demo.options import find_data, parse_policy, parse_teacher, parse_weight
    from sfkit_demo.settings import Settings

    settings = Settings(
        data=find_data(data),
        policy=parse_policy(policy),
        steps=steps,
        seed=seed,
        weight=parse_weight(weight, preset),
        preset=preset,
        objective=objective,
        student_layer=student_layer,
        teacher=parse_teacher(teacher, teacher_options),
    )
    compare(settings, out, jobs, study=sfkit_demo.STUDY)
