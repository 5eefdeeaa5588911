"""sfkit: give any vision-language-action policy a sense of 3D at training time.

``import sfkit`` is free of side effects and of heavy imports: names are resolved on first use (PEP 562), so that
neither torch nor pydantic is imported until a name that needs them is touched.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Version of the plugin interface. A plugin module states the one it was written for as ``SFKIT_API = 1``.
SFKIT_API = 1

_EXPORTS = {
    "CameraRig": "sfkit.views.cameras",
    "Camera": "sfkit.views.cameras",
    "FeatureMap": "sfkit.views.types",
    "GenericAdapter": "sfkit.policies.generic",
    "ImageTokens": "sfkit.policies.generic",
    "Objective": "sfkit.objectives.base",
    "Options": "sfkit.config",
    "PolicyAdapter": "sfkit.policies.base",
    "Projector": "sfkit.projectors.base",
    "Span": "sfkit.policies.generic",
    "SpatialForcing": "sfkit.wrap",
    "SpatialForcingConfig": "sfkit.config",
    "TapPoint": "sfkit.policies.base",
    "Teacher": "sfkit.teachers.base",
    "Transform": "sfkit.transforms.base",
    "Views": "sfkit.views.types",
    "SfkitError": "sfkit.errors",
    "SfkitWarning": "sfkit.errors",
    "hookimpl": "sfkit.registry.hookspecs",
}

__all__ = [  # noqa: PLE0604 - the exports are strings
    "SFKIT_API",
    "__version__",
    *sorted(_EXPORTS),
]

if TYPE_CHECKING:
    from sfkit.config import Options as Options
    from sfkit.config import SpatialForcingConfig as SpatialForcingConfig
    from sfkit.errors import SfkitError as SfkitError
    from sfkit.errors import SfkitWarning as SfkitWarning
    from sfkit.objectives.base import Objective as Objective
    from sfkit.policies.base import PolicyAdapter as PolicyAdapter
    from sfkit.policies.base import TapPoint as TapPoint
    from sfkit.policies.generic import GenericAdapter as GenericAdapter
    from sfkit.policies.generic import ImageTokens as ImageTokens
    from sfkit.policies.generic import Span as Span
    from sfkit.projectors.base import Projector as Projector
    from sfkit.registry.hookspecs import hookimpl as hookimpl
    from sfkit.teachers.base import Teacher as Teacher
    from sfkit.transforms.base import Transform as Transform
    from sfkit.views.cameras import Camera as Camera
    from sfkit.views.cameras import CameraRig as CameraRig
    from sfkit.views.types import FeatureMap as FeatureMap
    from sfkit.views.types import Views as Views
    from sfkit.wrap import SpatialForcing as SpatialForcing


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'sfkit' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


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
