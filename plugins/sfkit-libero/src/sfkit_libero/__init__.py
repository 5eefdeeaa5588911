"""LIBERO for sfkit: ``sfkit libero setup`` and ``check``, and closed-loop evaluation by LeRobot's own loop.

Importing this package imports neither LIBERO nor LeRobot: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.errors import SfkitError
from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

__all__ = ["SFKIT_API", "LiberoError"]


class LiberoError(SfkitError):
    """The simulator is not ready, or a policy and its environment do not fit."""


@hookimpl
def register_commands(register: Register) -> None:
    register("sfkit_libero.cli:libero", name="libero", summary="set the LIBERO benchmark up, and check that it renders")
