"""The terminal, for words that plugins, policies and files have chosen: none of them is markup."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def plain_console(*, highlight: bool = True, stderr: bool = False) -> Console:
    """A console that prints brackets and colons as they are, in tables too."""
    return Console(markup=False, emoji=False, highlight=highlight, stderr=stderr)


def titled(title: str, rest: str = "", style: str = "bold") -> Text:
    """A line that begins with a title in bold."""
    return Text.assemble((title, style), rest)
