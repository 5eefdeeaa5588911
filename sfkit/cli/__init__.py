"""The ``sfkit`` command. Parsing and printing only: the work is done elsewhere.

``sfkit --help`` imports neither torch nor pydantic; commands import what they need when they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sfkit.errors import SfkitError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 1 on an error of ours (told without a traceback), 2 on wrong usage.

    Args:
        arguments: Instead of those of the process.
    """
    from sfkit.cli.app import build_app

    try:
        build_app()(args=None if arguments is None else list(arguments), prog_name="sfkit")
    except SfkitError as error:
        from sfkit.cli.console import plain_console, titled

        console = plain_console(highlight=False, stderr=True)
        console.print(titled("error:", f" {error}", "bold red"), soft_wrap=True)
        sys.exit(1)
