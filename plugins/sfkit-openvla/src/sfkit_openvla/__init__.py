"""OpenVLA and OpenVLA-OFT for sfkit.

Importing this package imports neither torch nor transformers: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfkit.registry.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from sfkit_openvla.adapter import OpenVLAAdapter as OpenVLAAdapter

SFKIT_API = 1

__all__ = ["SFKIT_API", "OpenVLAAdapter"]


@hookimpl
def register_policies(register: Register) -> None:
    register(
        "sfkit_openvla.adapter:OpenVLAAdapter",
        name="openvla",
        summary="OpenVLA and OpenVLA-OFT, from the Hub's code or from their repositories",
        aligned="images' tokens in the Llama language model, or the vision backbone's output",
        trains="everything, or what LoRA is put on",
        verified="training steps of tiny models of both repositories' own classes",
        handles=(
            # transformers generates this module for a checkpoint's own code, with the repository or folder in its name.
            "transformers_modules.*OpenVLAForActionPrediction",
            "prismatic.extern.hf.modeling_prismatic.OpenVLAForActionPrediction",
        ),
    )


# Without a __dir__: pluggy before 1.6 gets every name of dir(), which would load torch for `sfkit --help`.
def __getattr__(name: str) -> object:
    if name == "OpenVLAAdapter":
        from sfkit_openvla.adapter import OpenVLAAdapter

        return OpenVLAAdapter
    raise AttributeError(f"module 'sfkit_openvla' has no attribute {name!r}")
