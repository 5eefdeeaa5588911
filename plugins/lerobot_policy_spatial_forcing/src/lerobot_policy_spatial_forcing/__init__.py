"""Spatial forcing for ``lerobot-train``: a policy type ``sf_x`` for each type ``x`` that LeRobot knows.

LeRobot imports every installed distribution whose name begins with ``lerobot_policy_``; importing this one registers
the types. The policies themselves, and what they need, are imported when one is asked for.
"""

from __future__ import annotations

from lerobot_policy_spatial_forcing.configuration_sf import CONFIGS, SfConfig
from lerobot_policy_spatial_forcing.options import SpatialForcingOptions

__all__ = ["CONFIGS", "SfConfig", "SpatialForcingOptions"]
