"""Vision-language models of transformers with a regression head: image tokens by id, padding on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.policies.generic import GenericOptions
from sfkit.policies.generic.pixels import to_views
from sfkit.testing.checks import check_correspondence
from sfkit.testing.tiny import PatchTeacher

FAMILIES = ["paligemma", "llava", "smolvlm", "qwen"]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fault_16_20_25_a_vlm_corresponds(make_vlm: Callable[..., Any], family: str, padding: str) -> None:
    case = make_vlm(family, padding)
    policy = SpatialForcing.wrap(case.policy.train(), PatchTeacher(), adapter=case.adapter, student_layer=0)
    check_correspondence(policy, case.batch(), case.perturb)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vlm_trains_with_alignment(make_vlm: Callable[..., Any], family: str) -> None:
    case = make_vlm(family, "left")
    policy = SpatialForcing.wrap(case.policy.train(), PatchTeacher(), adapter=case.adapter)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    seen = []
    for _ in range(8):
        policy(case.batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(policy.spatial_forcing.metrics()["sf_loss"])
    status = policy.spatial_forcing.status()
    assert status.reaches_policy
    assert status.projector_moved
    assert seen[-1] < seen[0] - 0.05
    views = case.adapter.bind(policy)
    assert views.num_layers == 3


def test_activation_checkpointing_of_a_vlm_changes_no_gradient(make_vlm: Callable[..., Any]) -> None:
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        case = make_vlm("llava", "right")
        if checkpointed:
            case.policy.vlm.gradient_checkpointing_enable({"use_reentrant": False})
        policy = SpatialForcing.wrap(case.policy.train(), PatchTeacher(), adapter=case.adapter, student_layer=2)
        policy(case.batch())["loss"].backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        found.append((policy.spatial_forcing.metrics()["sf_loss"], gradients))
        assert policy.spatial_forcing.runners[0].num_forwards == 1
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_patches_are_those_of_the_image_processor(patches_of: Callable[..., torch.Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, do_resize=False)
    pictures = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    given = processor(list(pictures), return_tensors="pt")
    options = GenericOptions(
        blocks="x", tokens={"id": 1}, grid=(1, 3, 4), images="pixel_values", layout="patches", pixels="clip"
    )
    views = to_views(given["pixel_values"], options)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (processor.image_mean, processor.image_std))
    expected = (pictures.float() / 255 - mean) / std
    torch.testing.assert_close(views[:, 0], expected)
    torch.testing.assert_close(patches_of(expected.unsqueeze(1)), given["pixel_values"])
