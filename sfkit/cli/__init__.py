"""The ``sfkit`` command: parsing and printing alone.

``sfkit --help`` imports neither torch nor pydantic: each command loads its components when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

import sfkit
from sfkit.cli import listing
from sfkit.cli.console import plain_console, titled
from sfkit.errors import PluginError, SfkitError
from sfkit.registry.hookspecs import EXTRAS
from sfkit.registry.registry import Entry, default_registry, pip_install

#: A plugin's command parses its own arguments, ``--help`` included.
_PASS_ON: dict[str, bool] = {"allow_extra_args": True, "ignore_unknown_options": True}


def build_app() -> typer.Typer:
    """The application. A command of a plugin is imported when it is called."""
    app = typer.Typer(
        help="Align vision-language-action policies with frozen 3D teachers, at training time only.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_root)
    # A plugin cannot replace these.
    own = (plugins, teachers, policies, presets)
    for command in own:
        app.command()(command)
    names = {command.__name__ for command in own}
    offered = {entry.name: entry for entry in default_registry().of_kind("command") if entry.name not in names}
    for name in sorted(offered):
        _add_plugin_command(app, offered[name])
    for name in sorted(EXTRAS["command"].keys() - offered.keys()):
        _add_missing_command(app, name)
    return app


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"sfkit {sfkit.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def plugins(json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """List the installed components and the broken plugins."""
    if json:
        typer.echo(listing.plugins_json(default_registry()))
    else:
        listing.print_plugins(default_registry())


def teachers(
    name: Annotated[str | None, typer.Argument(help="Show the options of this teacher.")] = None,
) -> None:
    """List the installed teachers with their licenses; with NAME, the options of one."""
    if name is None:
        listing.print_teachers(default_registry())
    else:
        listing.print_teacher(default_registry().get("teacher", name))


def policies() -> None:
    """List the policies that can be aligned, and those that cannot."""
    listing.print_policies(default_registry())


def presets(
    name: Annotated[str | None, typer.Argument(help="Show the arguments of this preset.")] = None,
) -> None:
    """List the published methods that wrap has presets for; with NAME, the arguments and the differences of one."""
    if name is None:
        listing.print_presets(default_registry())
    else:
        listing.print_preset(default_registry().get("preset", name))


def _add_plugin_command(app: typer.Typer, entry: Entry) -> None:
    def run(context: typer.Context) -> None:
        found = default_registry().get("command", entry.name).load()
        # Its help is the plugin's own text, which may hold brackets: no markup.
        inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            inner = found  # a command with commands of its own
        else:
            inner.command(entry.name)(found)
        inner(args=context.args, prog_name=f"sfkit {entry.name}")

    app.command(entry.name, help=escape(entry.summary), add_help_option=False, context_settings=_PASS_ON)(run)


def _add_missing_command(app: typer.Typer, name: str) -> None:
    extra = EXTRAS["command"][name]

    def run() -> None:
        broken = [plugin for plugin in default_registry().broken if plugin.distribution == f"sfkit-{extra}"]
        if broken:
            raise PluginError(f"`sfkit {name}` is part of a plugin that is broken: {broken[0]}")
        raise PluginError(f"`sfkit {name}` is part of sfkit-{extra}, which is not installed.", pip_install(extra))

    help_text = escape(f"not installed: {pip_install(extra)}")
    app.command(name, help=help_text, add_help_option=False, context_settings=_PASS_ON)(run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 1 on an error of sfkit (without a traceback), 2 on wrong usage.

    Args:
        arguments: The arguments; by default those of the process.
    """
    try:
        build_app()(args=None if arguments is None else list(arguments), prog_name="sfkit")
    except SfkitError as error:
        console = plain_console(highlight=False, stderr=True)
        console.print(titled("error:", f" {error}", "bold red"), soft_wrap=True)
        sys.exit(1)
