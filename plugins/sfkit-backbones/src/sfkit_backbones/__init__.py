"""Parts of teachers with published weights: blocks, strict lazy loading, Hub download, placement, parity.

Importing this package imports no torch: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

__all__ = ["SFKIT_API"]


@hookimpl
def register_parity(register: Register) -> None:
    register(
        "sfkit_backbones.parity.alignment_loss:AlignmentLossParity",
        name="alignment loss",
        summary="target, loss and gradients of Spatial Forcing, by its presets",
    )


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "sfkit_backbones.cli:parity",
        name="parity",
        summary="compare with the recorded outputs of a reference, case by case",
    )
