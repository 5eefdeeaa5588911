"""The terminal: text without markup, and options of components as one word of a command line."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sfkit.errors import ConfigError, shown


def plain_console(*, highlight: bool = True, stderr: bool = False) -> Console:
    """A console that prints brackets and colons as they are, in tables too."""
    return Console(markup=False, emoji=False, highlight=highlight, stderr=stderr)


def titled(title: str, rest: str = "", style: str = "bold") -> Text:
    """A line that begins with a title in bold."""
    return Text.assemble((title, style), rest)


def parse_options(text: str) -> dict[str, object]:
    """Read ``key=value,key=value``; a value that is not JSON is a text.

    ``"size=224,compile=true,config=tiny"`` gives ``{"size": 224, "compile": True, "config": "tiny"}``. A text that
    begins with ``{`` is one JSON object, for values that hold commas.

    Raises:
        ConfigError: The text cannot be read.
    """
    from sfkit.utils.places import parse_json

    options: dict[str, object] = {}
    if text.lstrip().startswith("{"):
        try:
            options = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{shown(text)} is no JSON object: {error}.", "Check its quotes and brackets.") from error
        return options
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key:
            raise ConfigError(f"Cannot read an option from {part!r}.", "Write key=value,key=value, or a JSON object.")
        try:
            options[key] = parse_json(value)
        except ValueError:
            options[key] = value
    return options
