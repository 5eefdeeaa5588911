"""DUSt3R and MASt3R for sfkit: frozen teachers that decode views in pairs.

Importing this package imports no torch: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

_LICENSE = "CC-BY-NC-SA-4.0"


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit_dust3r.teacher:DUSt3RTeacher",
        name="dust3r",
        summary="DUSt3R: a ViT-L encoder and a decoder over pairs of views; 224 and 512 checkpoints",
        license=_LICENSE,
    )
    register(
        "sfkit_dust3r.teacher:MASt3RTeacher",
        name="mast3r",
        summary="MASt3R: DUSt3R's backbone, trained for metric points and matching",
        license=_LICENSE,
    )


@hookimpl
def register_parity(register: Register) -> None:
    register(
        "sfkit_dust3r.parity:PairParity",
        name="DUSt3R trunk",
        summary="encoder and pair decoder of DUSt3R and MASt3R, without heads",
    )
