"""What the core itself offers, registered through the same door as any plugin."""

from __future__ import annotations

from sfkit.hookspecs import Register, hookimpl

SFKIT_API = 1


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit.teachers.geometry:GeometryTeacher",
        name="geometry",
        summary="3D points of each patch from metric depth and camera geometry; no weights, no download",
        license="Apache-2.0",
    )


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "sfkit.objectives.cosine:CosineObjective",
        name="cosine",
        summary="one minus the cosine similarity, averaged over the valid tokens of each sample",
    )


@hookimpl
def register_projectors(register: Register) -> None:
    register(
        "sfkit.projectors.mlp:MLPProjector",
        name="mlp",
        summary="LayerNorm, linear, GELU, linear, token by token (Spatial Forcing)",
    )
