"""The parsers that can be tried here: those of the core, and those of the plugins that are installed."""

from __future__ import annotations

import core_parsers
from running import Parser


def installed_parsers() -> list[Parser]:
    """All of them."""
    return core_parsers.parsers()
