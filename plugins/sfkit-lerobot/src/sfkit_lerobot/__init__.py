"""LeRobot policies for sfkit: adapters for SmolVLA, pi0 and pi0.5, and the way from a dataset's cameras to a teacher.

Importing this package imports neither torch nor lerobot: it is the plugin module that sfkit's registry loads, and its
public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfkit.registry.hookspecs import Register, hookimpl
from sfkit_lerobot.support import POLICIES, WITHOUT, class_pattern

SFKIT_API = 1

_EXPORTS = {
    "Evo1Adapter": "sfkit_lerobot.evo1",
    "GrootAdapter": "sfkit_lerobot.groot",
    "FrameKeys": "sfkit_lerobot.frame_keys",
    "FutureFrames": "sfkit_lerobot.future_frames",
    "ACTAdapter": "sfkit_lerobot.act",
    "DiffusionAdapter": "sfkit_lerobot.diffusion",
    "LeRobotAdapter": "sfkit_lerobot.base",
    "MolmoAct2Adapter": "sfkit_lerobot.molmoact2",
    "PI05Adapter": "sfkit_lerobot.pi05",
    "PI0Adapter": "sfkit_lerobot.pi0",
    "PI0FastAdapter": "sfkit_lerobot.pi0_fast",
    "SmolVLAAdapter": "sfkit_lerobot.smolvla",
    "VLAJEPAAdapter": "sfkit_lerobot.vla_jepa",
    "WallXAdapter": "sfkit_lerobot.wall_x",
    "XVLAAdapter": "sfkit_lerobot.xvla",
    "camera_rig": "sfkit_lerobot.dataset",
    "image_stats": "sfkit_lerobot.dataset",
    "policy_features": "sfkit_lerobot.features",
    "strip_geometry": "sfkit_lerobot.features",
}

__all__ = [
    "SFKIT_API",
    "ACTAdapter",
    "DiffusionAdapter",
    "Evo1Adapter",
    "FrameKeys",
    "FutureFrames",
    "GrootAdapter",
    "LeRobotAdapter",
    "MolmoAct2Adapter",
    "PI0Adapter",
    "PI0FastAdapter",
    "PI05Adapter",
    "SmolVLAAdapter",
    "VLAJEPAAdapter",
    "WallXAdapter",
    "XVLAAdapter",
    "camera_rig",
    "image_stats",
    "policy_features",
    "strip_geometry",
]

if TYPE_CHECKING:
    from sfkit_lerobot.act import ACTAdapter as ACTAdapter
    from sfkit_lerobot.base import LeRobotAdapter as LeRobotAdapter
    from sfkit_lerobot.dataset import camera_rig as camera_rig
    from sfkit_lerobot.dataset import image_stats as image_stats
    from sfkit_lerobot.diffusion import DiffusionAdapter as DiffusionAdapter
    from sfkit_lerobot.evo1 import Evo1Adapter as Evo1Adapter
    from sfkit_lerobot.features import policy_features as policy_features
    from sfkit_lerobot.features import strip_geometry as strip_geometry
    from sfkit_lerobot.frame_keys import FrameKeys as FrameKeys
    from sfkit_lerobot.future_frames import FutureFrames as FutureFrames
    from sfkit_lerobot.groot import GrootAdapter as GrootAdapter
    from sfkit_lerobot.molmoact2 import MolmoAct2Adapter as MolmoAct2Adapter
    from sfkit_lerobot.pi0 import PI0Adapter as PI0Adapter
    from sfkit_lerobot.pi0_fast import PI0FastAdapter as PI0FastAdapter
    from sfkit_lerobot.pi05 import PI05Adapter as PI05Adapter
    from sfkit_lerobot.smolvla import SmolVLAAdapter as SmolVLAAdapter
    from sfkit_lerobot.vla_jepa import VLAJEPAAdapter as VLAJEPAAdapter
    from sfkit_lerobot.wall_x import WallXAdapter as WallXAdapter
    from sfkit_lerobot.xvla import XVLAAdapter as XVLAAdapter


@hookimpl
def register_policies(register: Register) -> None:
    for target, metadata in POLICIES.items():
        register(target, **metadata)
    for kind, name, reason in WITHOUT:
        register(None, name=kind, handles=(class_pattern(kind, name),), reason=reason)


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'sfkit_lerobot' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
