"""The command ``sfkit libero``: parse, call, print."""

from __future__ import annotations

import enum
import importlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfkit_libero import LiberoError

if TYPE_CHECKING:
    from sfkit_libero.packages import Package


class Action(enum.StrEnum):
    """What to do."""

    setup = "setup"
    check = "check"


def libero(
    action: Annotated[Action, typer.Argument(help="setup: make LIBERO ready; check: render one frame of it.")],
    install: Annotated[bool, typer.Option("--install", help="setup: install the packages that are missing.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="setup: write the configuration of another installation anew.")
    ] = False,
    out: Annotated[Path, typer.Option(help="check: where to save the frame.")] = Path("libero.png"),
) -> None:
    """Set the LIBERO benchmark up, or check that it renders.

    setup lists what is missing and under which license it is, writes LIBERO's configuration file, and links its assets
    to where it looks for them. It asks nothing, changes nothing that is right, and may be run again.
    check renders one frame with each environment that is installed, and prints the time of a step.
    """
    from sfkit_libero.setup import check_ready, setup

    if action is Action.setup:
        _provide(install)
        for line in setup(replace=replace):
            typer.echo(line)
        typer.echo("ready; `sfkit libero check` renders a frame")
    else:
        check_ready()
        _check(out)


def _provide(install: bool) -> None:
    from sfkit_libero.packages import missing

    absent = missing()
    if not absent:
        return
    for package in absent:
        typer.echo(f"{package.requirement:38} {package.license:11} {package.size:4} MB  {package.what}")
    command = install_command(absent)
    if not install:
        raise LiberoError("These packages are missing.", f"sfkit libero setup --install, or: {shlex.join(command)}")
    typer.echo(shlex.join(command))
    if subprocess.run(command, check=False).returncode != 0:
        raise LiberoError("The packages could not be installed.", "See the lines above.")
    importlib.invalidate_caches()  # this process has looked for them already


def install_command(packages: Sequence[Package]) -> list[str]:
    """The command that installs into this environment: pip's, or uv's where there is no pip."""
    requirements = [package.requirement for package in packages]
    if find_spec("pip") is None and (uv := shutil.which("uv")):
        return [uv, "pip", "install", "--python", sys.executable, *requirements]
    return [sys.executable, "-m", "pip", "install", *requirements]


def _check(out: Path) -> None:
    from sfkit_libero.frame import time_frames

    kinds = ["libero", *(["fast_libero"] if find_spec("lerobot_env_fast_libero") else [])]
    for kind in kinds:
        image = out if kind == "libero" else out.with_stem(f"{out.stem}_fast_rendering")
        taken = time_frames(image, kind)
        typer.echo(
            f"{kind}: {taken.cpu:.2f} CPU-seconds a step ({taken.step:.2f} s on the clock), "
            f"{taken.build:.0f} s to build; frame: {image}"
        )
