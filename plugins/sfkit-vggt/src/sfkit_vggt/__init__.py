"""VGGT as a teacher for sfkit: joint geometry features of all views of a sample.

Importing this package does not import torch: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

__all__ = ["SFKIT_API"]


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit_vggt.teacher:Vggt",
        name="vggt",
        summary="VGGT-1B: geometry of all views together, 24 layers of 2048 channels",
        license="CC-BY-NC-4.0",
    )
    register(
        "sfkit_vggt.teacher:VggtCommercial",
        name="vggt-commercial",
        summary="VGGT-1B-Commercial: the same network, other weights, behind a gate",
        license="VGGT License",
    )


@hookimpl
def register_parity(register: Register) -> None:
    register("sfkit_vggt.parity:VggtParity", name="VGGT aggregator", summary="the backbone of VGGT")
