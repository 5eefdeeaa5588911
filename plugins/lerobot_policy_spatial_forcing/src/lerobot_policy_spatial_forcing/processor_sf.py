"""``make_sf_*_pre_post_processors``: the base policy's own processors, found by LeRobot by these names."""

from __future__ import annotations

from typing import Any

from lerobot_policy_spatial_forcing.configuration_sf import CONFIGS


def __getattr__(name: str) -> Any:
    for kind, config in CONFIGS.items():
        if name == f"make_{kind}_pre_post_processors":
            return config.base.make_processors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
