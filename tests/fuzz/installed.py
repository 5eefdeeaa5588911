"""The parsers that can be tried here: those of the core, and those of the plugins that are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import core_parsers
import plugin_parsers
from running import Parser


def installed_parsers() -> list[Parser]:
    """All of them."""
    found = [*core_parsers.parsers(), *plugin_parsers.parsers()]
    if sys.version_info >= (3, 12) and find_spec("lerobot_policy_spatial_forcing"):
        import lerobot_parsers

        found += lerobot_parsers.parsers()
    return found
