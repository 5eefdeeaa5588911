"""Spatial Forcing as released: target, loss and gradients of its own code, where a record of them is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sfkit.alignment.step import align, prepare_target
from sfkit.building import build_transforms
from sfkit.objectives.cosine import CosineObjective
from sfkit.projectors.mlp import MLPProjector
from sfkit.types import FeatureMap

FILE = Path(__file__).parents[3] / "shared" / "fixtures" / "sf_loss.safetensors"
RESAMPLE = ("resample", {"align_corners": True})
CODE = ("position-code", {"ratio": 0.1, "scale": "absolute"})

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the record of the released loss is not here")


def cases() -> list[dict[str, Any]]:
    if not FILE.is_file():
        return []
    with safe_open(FILE, "pt") as file:
        found: list[dict[str, Any]] = json.loads(file.metadata()["cases"])
    return found


def expect(found: Tensor | None, wanted: Tensor) -> None:
    assert found is not None
    assert (found.reshape(wanted.shape) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_target_loss_and_gradients_are_those_of_the_released_code(case: dict[str, Any]) -> None:
    start = case["name"] + "."
    data = {key.removeprefix(start): value for key, value in load_file(FILE).items() if key.startswith(start)}
    b, v, side, own = case["batch"], case["views"], case["student_grid"], case["teacher_grid"]
    hidden = data["in.student_hidden"].requires_grad_()
    mask = data.get("in.mask", torch.ones(hidden.shape[:2], dtype=torch.bool)).reshape(b, v, side, side)
    values = data["in.teacher_features"].reshape(b, v, own, own, -1)
    teacher = FeatureMap(values, torch.ones(values.shape[:-1], dtype=torch.bool))
    projector = MLPProjector(case["student_dim"], case["teacher_dim"])
    weights = {key.removeprefix("in.projector."): x for key, x in data.items() if key.startswith("in.projector.")}
    projector.load_state_dict({key.replace("vlm_norm", "norm"): x for key, x in weights.items()})
    names = [CODE, RESAMPLE] if case["target_pe"] else [RESAMPLE]
    projector.target_transforms.extend(build_transforms(names, case["teacher_dim"]))

    expect(prepare_target(teacher, projector, torch.ones_like(mask)).values, data["out.target"])
    student = FeatureMap(hidden.reshape(b, v, side, side, -1), mask)
    loss = align(student, teacher, projector, CosineObjective()).loss.mean()
    expect(loss, data["out.loss"])
    loss.backward()
    expect(hidden.grad, data["out.grad_hidden"])
    for name, parameter in projector.named_parameters():
        expect(parameter.grad, data[f"out.grad_projector.{'vlm_' * name.startswith('norm')}{name}"])
