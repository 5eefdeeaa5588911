"""What is printed on the terminal, and options that are read from one word of a command line."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from sfkit.errors import ConfigError


def plain_console(*, highlight: bool = True, stderr: bool = False) -> Console:
    """A console that prints brackets and colons as they are, in tables too."""
    return Console(markup=False, emoji=False, highlight=highlight, stderr=stderr)


def titled(title: str, rest: str = "", style: str = "bold") -> Text:
    """A line that begins with a title in bold."""
    return Text.assemble((title, style), rest)


def parse_options(text: str) -> dict[str, Any]:
    """Read ``key=value,key=value``; values are JSON where they can be read as such, else text.

    ``"size=224,compile=true,config=tiny"`` gives ``{"size": 224, "compile": True, "config": "tiny"}``. A text that
    begins with ``{`` is one JSON object, for values that hold commas.

    Raises:
        ConfigError: It cannot be read.
    """
    if text.lstrip().startswith("{"):
        try:
            options: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{text!r} is no JSON object: {error}.", "Check its quotes and brackets.") from error
        return options
    options = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"Cannot read an option from {part!r}.", "Write key=value,key=value, or a JSON object.")
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
