"""The ``sfkit`` command. Parsing and printing only: the work is done elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

import sfkit
from sfkit.errors import PluginError, SfkitError
from sfkit.registry.registry import CORE, Entry, default_registry

#: Commands of this project's plugins, listed also where the plugin is missing: distribution, extra, summary.
_KNOWN = {
    "demo": ("sfkit-demo", "demo", "train a small policy with and without alignment, and compare"),
    "inspect": ("sfkit-tools", "tools", "find what a GenericAdapter needs of any policy"),
    "rank-layers": ("sfkit-tools", "tools", "rank the layers of a policy for a teacher"),
    "parity": ("sfkit-backbones", "backbones", "compare with the recorded outputs of a reference, case by case"),
}

#: All that follows the name of a plugin's command is its own business, ``--help`` included.
_PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def build_app() -> typer.Typer:
    """The application. Plugins are asked which commands they have; none is imported before it is called."""
    app = typer.Typer(
        help="Align vision-language-action policies with frozen 3D teachers, at training time only.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_root)
    app.command("plugins")(plugins)
    app.command("teachers")(teachers)
    app.command("policies")(policies)
    app.command("presets")(presets)
    own = {"plugins", "teachers", "policies", "presets"}
    offered = {entry.name: entry for entry in default_registry().of_kind("command") if entry.name not in own}
    for name in sorted(offered):
        _add_plugin_command(app, offered[name])
    for name in sorted(_KNOWN.keys() - offered.keys()):
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
    """What is installed, what it offers, and what is broken."""
    from sfkit.cli.listing import plugins_json, print_plugins

    if json:
        typer.echo(plugins_json(default_registry()))
    else:
        print_plugins(default_registry())


def teachers(
    name: Annotated[str | None, typer.Argument(help="Show the options of this teacher.")] = None,
) -> None:
    """Installed teachers with their licenses; with NAME, the options of one."""
    from sfkit.cli.listing import print_teacher, print_teachers

    if name is None:
        print_teachers(default_registry())
    else:
        print_teacher(default_registry().get("teacher", name))


def policies(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the documentation.")] = False,
) -> None:
    """Which policies can be aligned, what of them, and which cannot."""
    from sfkit.cli.listing import print_policies, support_tables

    if markdown:
        typer.echo(support_tables(default_registry()), nl=False)
    else:
        print_policies(default_registry())


def presets(
    name: Annotated[str | None, typer.Argument(help="Show what this preset stands for.")] = None,
) -> None:
    """Published methods that are one word in wrap; with NAME, what it stands for and what it does not reproduce."""
    from sfkit.cli.listing import print_preset, print_presets

    if name is None:
        print_presets(default_registry())
    else:
        print_preset(default_registry().get("preset", name))


def _add_plugin_command(app: typer.Typer, entry: Entry) -> None:
    def run(context: typer.Context) -> None:
        # Its help is the plugin's own text, which may hold brackets: no markup.
        inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        inner.command(entry.name)(default_registry().get("command", entry.name).load())
        inner(args=context.args, prog_name=f"sfkit {entry.name}")

    app.command(entry.name, help=escape(entry.summary), add_help_option=False, context_settings=_PASS_ON)(run)


def _add_missing_command(app: typer.Typer, name: str) -> None:
    distribution, extra, summary = _KNOWN[name]

    def run() -> None:
        broken = [plugin for plugin in default_registry().broken if plugin.distribution == distribution]
        if broken:
            raise PluginError(f"`sfkit {name}` is part of a plugin that is broken: {broken[0]}")
        raise PluginError(
            f"`sfkit {name}` is part of {distribution}, which is not installed.",
            f'pip install "{CORE}[{extra}]"',
        )

    help_text = f"{summary} (needs {distribution})"
    app.command(name, help=help_text, add_help_option=False, context_settings=_PASS_ON)(run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 1 on an error of ours (told without a traceback), 2 on wrong usage.

    Args:
        arguments: Instead of those of the process.
    """
    try:
        build_app()(args=None if arguments is None else list(arguments), prog_name="sfkit")
    except SfkitError as error:
        from sfkit.cli.console import plain_console, titled

        console = plain_console(highlight=False, stderr=True)
        console.print(titled("error:", f" {error}", "bold red"), soft_wrap=True)
        sys.exit(1)
