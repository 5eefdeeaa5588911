"""Vision backbones of Hugging Face transformers as teachers: ``hf:<repo or folder>``.

Importing this package imports neither torch nor transformers: it is the plugin module that sfkit's registry loads.
"""

from __future__ import annotations

from sfkit.hookspecs import Register, hookimpl

SFKIT_API = 1


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
