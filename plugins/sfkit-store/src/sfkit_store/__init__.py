"""The feature store: a teacher's features computed once, and read by frame in every run after.

Importing this package imports neither torch nor pyarrow: it is the plugin module that sfkit's registry loads, and its
public names are imported on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

_EXPORTS = {
    "FrameSource": "build",
    "LeRobotFrames": "frames",
    "Manifest": "manifest",
    "Store": "store",
    "StoreError": "manifest",
    "StoreTeacher": "teacher",
    "build_store": "build",
}

__all__ = [
    "SFKIT_API",
    "FrameSource",
    "LeRobotFrames",
    "Manifest",
    "Store",
    "StoreError",
    "StoreTeacher",
    "build_store",
]

if TYPE_CHECKING:
    from sfkit_store.build import FrameSource as FrameSource
    from sfkit_store.build import build_store as build_store
    from sfkit_store.frames import LeRobotFrames as LeRobotFrames
    from sfkit_store.manifest import Manifest as Manifest
    from sfkit_store.manifest import StoreError as StoreError
    from sfkit_store.store import Store as Store
    from sfkit_store.teacher import StoreTeacher as StoreTeacher


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit_store.teacher:StoreTeacher",
        name="store",
        argument="path",
        placeholder="folder",
        summary="features of any teacher that `sfkit store build` computed before; no weights at training time",
        license="that of the teacher in the store",
    )


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "sfkit_store.cli:app",
        name="store",
        summary="compute a teacher's features once; verify a store, or show what it holds",
    )


# Without a __dir__: pluggy before 1.6 gets every name of dir(), which would load torch for `sfkit --help`.
def __getattr__(name: str) -> object:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'sfkit_store' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"sfkit_store.{module}"), name)
    globals()[name] = value
    return value
