"""openpi's PyTorch policies for sfkit: one adapter for pi0 and pi0.5, and checkpoints for those without sfkit.

Importing this package imports neither torch nor openpi: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfkit.registry.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from sfkit_openpi.adapter import OpenPIAdapter as OpenPIAdapter
    from sfkit_openpi.checkpoint import export_checkpoint as export_checkpoint

SFKIT_API = 1

__all__ = ["SFKIT_API", "OpenPIAdapter", "export_checkpoint"]


@hookimpl
def register_policies(register: Register) -> None:
    register(
        "sfkit_openpi.adapter:OpenPIAdapter",
        name="openpi",
        summary="pi0 and pi0.5 of openpi (PyTorch)",
        aligned="images' tokens in PaliGemma's language model, or its vision tower's output",
        trains="everything",
        verified="training steps of tiny models of openpi's own classes",
        handles=("openpi.models_pytorch.pi0_pytorch.PI0Pytorch",),
    )


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "sfkit_openpi.checkpoint:openpi_export",
        name="openpi-export",
        summary="copy an openpi checkpoint without what sfkit added, to serve it without sfkit",
    )


# Without a __dir__: pluggy before 1.6 gets every name of dir(), which would load torch for `sfkit --help`.
def __getattr__(name: str) -> object:
    if name == "OpenPIAdapter":
        from sfkit_openpi.adapter import OpenPIAdapter

        return OpenPIAdapter
    if name == "export_checkpoint":
        from sfkit_openpi.checkpoint import export_checkpoint

        return export_checkpoint
    raise AttributeError(f"module 'sfkit_openpi' has no attribute {name!r}")
