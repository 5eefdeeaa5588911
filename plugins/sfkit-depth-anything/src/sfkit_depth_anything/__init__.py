"""Depth Anything 3 as a teacher for sfkit: multi-view features, with a commercially usable default.

Importing this package imports no torch: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1


@hookimpl
def register_teachers(register: Register) -> None:
    free, limited = "Apache-2.0", "CC-BY-NC-4.0"
    for name, target, license_, size in (
        ("da3-small", "DA3Small", free, "22 M"),
        ("da3-base", "DA3Base", free, "87 M"),
        ("da3-large", "DA3Large", limited, "304 M"),
        ("da3-giant", "DA3Giant", limited, "1137 M"),
    ):
        register(
            f"sfkit_depth_anything.teachers:{target}",
            name=name,
            summary=f"Depth Anything 3, multi-view features, {size} parameters",
            license=license_,
        )


@hookimpl
def register_parity(register: Register) -> None:
    register(
        "sfkit_depth_anything.parity:DepthAnythingParity", name="DA3 backbone", summary="Depth Anything 3's backbone"
    )
