"""The command ``sfkit inspect``: find the options of a GenericAdapter for a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sfkit_tools.report import Inspection


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:function or file.py:function: takes nothing, returns (policy, batch).",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(help="Path of the images in the batch; once for each view if they come one by one."),
    ] = None,
) -> None:
    """Find blocks, visual tokens and images of any policy, and print the GenericAdapter that aligns it.

    Runs one training step without an optimizer, then only forward on changed images. The exit status is 1 if a
    required option of the adapter was not found.
    """
    from sfkit.cli.console import plain_console
    from sfkit_tools.inspection import inspect_policy
    from sfkit_tools.loading import load_target

    policy, batch, *_ = load_target(target)
    found = inspect_policy(policy, batch, images=images or ())
    print_inspection(found, plain_console(highlight=False))
    if found.missing:
        raise typer.Exit(1)


def print_inspection(found: Inspection, console: Console) -> None:
    """Print the tables of stacks and taps, the notes, and the code of the adapter."""
    from rich.table import Table

    from sfkit.cli.console import titled

    table = Table("", "blocks", "class", "parameters", "tap", "fires", "is given", "gradient", "reaches", box=None)
    for stack in found.stacks:
        table.add_row(
            "→" if stack.sees else "", stack.path, f"{stack.blocks} {stack.kind}", _millions(stack.parameters),
            stack.tap, f"{stack.fired} of {stack.blocks}", " × ".join(map(str, stack.shape)),
            _norm(stack.gradient), _millions(stack.reaches),
        )  # fmt: skip
    console.print(titled(found.policy, ": rows of blocks of one class (→ the visual tokens' own)"))
    console.print(table)
    if found.taps:
        layers = Table("layer", "tap (input of)", "fires", "gradient of the loss", "alignment trains", box=None)
        for tap in found.taps:
            trained = {True: "yes", False: "nothing", None: "not known"}[tap.trained]
            layers.add_row(str(tap.student_layer), tap.path, f"{tap.fired} ×", _norm(tap.gradient), trained)
        console.print()
        console.print(layers)
    if found.hits is not None:
        console.print(f"\nOf the patches that were changed, {found.hits:.0%} moved their own token most.")
    for note in found.notes:
        console.print(f"- {note}")
    console.print()
    console.print(found.snippet(), soft_wrap=True)
    for name in found.missing:
        console.print(titled("not found:", f" {name}", "bold red"))


def _norm(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else str(count)
