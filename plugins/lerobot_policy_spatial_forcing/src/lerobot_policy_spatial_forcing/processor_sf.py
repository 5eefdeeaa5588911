"""``make_sf_*_pre_post_processors``: LeRobot's own processors of each base policy, found by LeRobot by these names."""

from __future__ import annotations

from typing import Any

from lerobot_policy_spatial_forcing.bases import BASES


def __getattr__(name: str) -> Any:
    for base in BASES:
        if name == f"make_{base.type}_pre_post_processors":
            return base.make_processors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
