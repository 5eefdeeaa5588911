"""The full sizes have exactly the published tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sfkit_backbones.weights import without_weights
from sfkit_depth_anything.teachers import DA3Base, DA3Giant, DA3Large, DA3Small, DepthAnything3

FACTS = Path(__file__).parents[4] / "shared" / "facts" / "da3_keys.json"
TEACHERS = (DA3Small, DA3Base, DA3Large, DA3Giant)
#: Tensors and values of the published backbones.
COUNTS = {
    "da3-small": (207, 22_059_008),
    "da3-base": (207, 86_583_296),
    "da3-large": (407, 304_373_760),
    "da3-giant": (675, 1_136_489_216),
}


def shapes_of(teacher: type[DepthAnything3]) -> dict[str, list[int]]:
    with without_weights():
        state = teacher().build().state_dict()
    return {teacher.prefix + key: list(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda teacher: teacher.name)
def test_counts(teacher: type[DepthAnything3]) -> None:
    shapes = shapes_of(teacher)
    values = sum(int(torch.tensor(shape).prod()) for shape in shapes.values())
    assert (len(shapes), values) == COUNTS[teacher.name]


@pytest.mark.skipif(not FACTS.is_file(), reason="the list of published keys is not beside this checkout")
@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda teacher: teacher.name)
def test_keys_and_shapes(teacher: type[DepthAnything3]) -> None:
    assert shapes_of(teacher) == json.loads(FACTS.read_text())[teacher.name]["keys"]


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda teacher: teacher.name)
def test_the_default_layer_is_the_last_that_the_heads_read(teacher: type[DepthAnything3]) -> None:
    last = {"da3-small": 11, "da3-base": 11, "da3-large": 23, "da3-giant": 39}[teacher.name]
    made = teacher()
    assert made.default_layer == last + 1
    assert made.backbone_config.joins_views(last)
    assert made.dim(last + 1) == 2 * made.backbone_config.dim
    assert teacher({"half": "local"}).dim(1) == made.backbone_config.dim
