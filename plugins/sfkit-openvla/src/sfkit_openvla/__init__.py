"""OpenVLA and OpenVLA-OFT for sfkit.

Importing this package imports neither torch nor transformers: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from typing import Any

from sfkit.registry.hookspecs import Register, hookimpl

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
            # Hugging Face makes the module for a checkpoint's own code, and puts the repository or folder in its name.
            "transformers_modules.*OpenVLAForActionPrediction",
            "prismatic.extern.hf.modeling_prismatic.OpenVLAForActionPrediction",
        ),
    )


# No __dir__ beside it: pluggy before 1.6 gets every name that dir() lists, and would load torch for `sfkit --help`.
def __getattr__(name: str) -> Any:
    if name == "OpenVLAAdapter":
        from sfkit_openvla.adapter import OpenVLAAdapter

        return OpenVLAAdapter
    raise AttributeError(f"module 'sfkit_openvla' has no attribute {name!r}")
