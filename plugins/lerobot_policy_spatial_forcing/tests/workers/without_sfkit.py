"""Runs a script in a process in which nothing of sfkit can be imported: ``without_sfkit.py SCRIPT ARGUMENTS``."""

from __future__ import annotations

import runpy
import sys
from typing import Any


class Absent:
    """Finds nothing of sfkit, and says so."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("sfkit", "sfkit_lerobot", "lerobot_policy_spatial_forcing"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
