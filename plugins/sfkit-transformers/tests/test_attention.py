"""Queries and keys of blocks, against the attention that the models themselves report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sfkit_transformers.families import FAMILIES
from sfkit_transformers.teacher import TransformersTeacher
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.errors import ConfigError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views

Folders = Callable[[str], Path]
MakeViews = Callable[..., Views]
KNOWN = {"dinov2": 1, "dinov2_registers": 4, "vit": 1, "siglip": 0, "clip": 1}


def reported(folder: Path, views: Views) -> list[Tensor]:
    """For each block ``(n, heads, tokens, tokens)``, by transformers itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole: Any = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = getattr(whole, "vision_model", whole).eval()
    images = processor(list(views.images.flatten(0, 1)), return_tensors="pt", do_rescale=False, do_resize=False)
    found: list[Tensor] = []
    for module in model.modules():
        if hasattr(module, "q_proj") or hasattr(module, "query"):
            module.register_forward_hook(lambda module, args, output: found.append(output[1]))
    with torch.no_grad():
        model(images["pixel_values"])
    return found


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_their_softmax_is_the_models_own_attention(name: str, folders: Folders, make_views: MakeViews) -> None:
    views, prefix = make_views(1, 2), KNOWN[name]
    teacher = TransformersTeacher({"model": str(folders(name))})
    heads, width = teacher.attention_heads(1)
    assert (heads, width) == (2, 12)
    wanted = reported(folders(name), views)
    host = TeacherRunner(teacher)
    maps = host.features(views, [2], (4, 4), blocks=[3, 1])
    assert host.num_forwards == 1
    assert torch.equal(maps[0].values, host.features(views, [2], (4, 4))[0].values)
    for found, block in zip(maps[1:], (3, 1), strict=True):
        assert found.values.shape == (1, 2, 4, 4, 2 * heads * width)
        queries, keys = found.values.reshape(2, 16, 2, heads, width).transpose(1, 3).unbind(2)
        own = (queries @ keys.mT).softmax(-1)
        patches = wanted[block - 1][:, :, prefix:, prefix:]
        assert_rounded(own, patches / patches.sum(-1, keepdim=True))


def test_every_family_is_either_tried_or_refused(folders: Folders) -> None:
    assert sum(family.attention is not None for family in FAMILIES.values()) == len(KNOWN)
    for name in ("dinov3", "vjepa2", "dinov3_convnext"):
        teacher = TransformersTeacher({"model": str(folders(name))})
        with pytest.raises(ConfigError, match=r"queries and keys are not known.*\n.*dinov2, dinov2_with_registers"):
            teacher.attention_heads(1)


def test_a_policy_is_aligned_with_them_and_blocks_are_checked(dinov2: Path) -> None:
    policy, name = TinyPolicy(), f"hf:{dinov2}"
    pairs = [(2, name, 3), {"student_layer": 2, "teacher": name, "teacher_layer": 3, "objective": "attention"}]
    SpatialForcing.wrap(policy, pairs=pairs, adapter=TinyAdapter(policy))
    policy(tiny_batch())[0].backward()
    handle = policy.spatial_forcing
    assert isinstance(handle, SpatialForcing)
    assert handle.runners[0].num_forwards == len(handle.runners) == 1
    with pytest.raises(ConfigError, match="Teacher layer 4 is out of range"):
        SpatialForcing.wrap(
            TinyPolicy(), name, teacher_layer=4, objective="attention", adapter=TinyAdapter(TinyPolicy())
        )
