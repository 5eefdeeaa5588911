"""sfkit: give any vision-language-action policy a sense of 3D at training time.

``import sfkit`` is free of side effects and of heavy imports: names are resolved on first use (PEP 562), so that
neither torch nor pydantic is imported until a name that needs them is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfkit.config import Options, SpatialForcingConfig
    from sfkit.errors import SfkitError, SfkitWarning
    from sfkit.objectives.base import Objective
    from sfkit.policies.base import AdapterOptions, ForwardCall, PolicyAdapter, TapPoint
    from sfkit.policies.generic import GenericAdapter, ImageTokens, Span
    from sfkit.presets import Preset
    from sfkit.projectors.base import Projector
    from sfkit.registry.hookspecs import hookimpl
    from sfkit.schedules.base import Schedule
    from sfkit.teachers.base import Teacher
    from sfkit.transforms.base import Transform
    from sfkit.views.cameras import Camera, CameraRig
    from sfkit.views.types import FeatureMap, Views
    from sfkit.wrap import SpatialForcing

__all__ = [
    "SFKIT_API",
    "AdapterOptions",
    "Camera",
    "CameraRig",
    "FeatureMap",
    "ForwardCall",
    "GenericAdapter",
    "ImageTokens",
    "Objective",
    "Options",
    "PolicyAdapter",
    "Preset",
    "Projector",
    "Schedule",
    "SfkitError",
    "SfkitWarning",
    "Span",
    "SpatialForcing",
    "SpatialForcingConfig",
    "TapPoint",
    "Teacher",
    "Transform",
    "Views",
    "__version__",
    "hookimpl",
]
__version__ = "0.1.0"
"""Version of the distribution ``spatial-forcing``."""
SFKIT_API = 1
"""Version of the plugin interface. A plugin module says for which one it was written: ``SFKIT_API = 1``."""

#: Where public names are looked up, one module after the other: those that import least stand first.
_MODULES = (
    "errors",
    "registry.hookspecs",
    "config",
    "presets",
    "views.cameras",
    "views.types",
    "objectives.base",
    "projectors.base",
    "schedules.base",
    "transforms.base",
    "teachers.base",
    "policies.base",
    "policies.generic",
    "wrap",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            value = getattr(importlib.import_module(f"sfkit.{module}"), name, None)
            if value is not None:
                globals()[name] = value
                return value
    raise AttributeError(f"module 'sfkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _warn_of_namesake(folders: list[str]) -> None:
    """Warn when PyPI's distribution ``sfkit`` is installed: it is a genomics tool, and installs the same package.

    The folders are listed by hand, because importing ``importlib.metadata`` takes longer than all of ``import sfkit``.
    """
    for folder in folders:
        try:
            names = os.listdir(folder)  # noqa: PTH208 - importing pathlib takes longer than the rest
        except OSError:  # sys.path holds zip files and folders that do not exist
            continue
        if any(name.startswith("sfkit-") and name.endswith((".dist-info", ".egg-info")) for name in names):
            import warnings

            from sfkit.errors import SfkitWarning

            warnings.warn(
                f"Another project's distribution `sfkit` is installed in {folder}; it overwrites files of this one. "
                "Run: pip uninstall sfkit, then: pip install --force-reinstall --no-deps spatial-forcing",
                SfkitWarning,
                stacklevel=3,
            )


_warn_of_namesake([folder for folder in sys.path if folder])
