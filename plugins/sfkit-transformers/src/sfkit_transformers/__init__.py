"""Vision backbones of Hugging Face transformers as teachers: ``hf:<repo or folder>``; and a callback for its Trainer.

Importing this package imports neither torch nor transformers: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfkit.registry.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from sfkit_transformers.trainer import SpatialForcingCallback as SpatialForcingCallback

SFKIT_API = 1


def __getattr__(name: str) -> object:
    if name == "SpatialForcingCallback":
        from sfkit_transformers.trainer import SpatialForcingCallback

        return SpatialForcingCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit_transformers.teacher:TransformersTeacher",
        name="hf",
        argument="model",
        placeholder="repo or folder",
        summary="patch tokens of a transformers vision backbone: DINOv2/v3, SigLIP, Depth Anything, V-JEPA 2, ...",
        license="the model's own",
    )
