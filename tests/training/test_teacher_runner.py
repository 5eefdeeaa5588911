"""Running teachers: frozen, out of the way, and blind to absent cameras."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sfkit.errors import ViewsError
from sfkit.teachers.geometry import GeometryTeacher
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views


def views(present: list[list[bool]], seed: int = 0) -> Views:
    b, v = len(present), len(present[0])
    images = torch.rand(b, v, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    valid = torch.tensor(present)[:, :, None, None].expand(b, v, 8, 8)
    return Views(images, valid, tuple(f"cam{i}" for i in range(v)))


def test_fault_23_an_absent_view_never_touches_a_real_one() -> None:
    host = TeacherRunner(PatchTeacher({"joint": True}))
    ragged = [[True, True, False], [True, False, False], [False, True, True], [False, False, False], [True] * 3]
    seen = views(ragged)
    (whole,) = host.features(seen, [1], (2, 2))
    changed = seen.images.clone()
    changed[~torch.tensor(ragged)] = torch.nan
    (again,) = host.features(Views(changed, seen.valid, seen.names), [1], (2, 2))
    assert torch.equal(whole.values, again.values)
    assert torch.equal(whole.mask[..., 0, 0], torch.tensor(ragged))
    for sample, pattern in enumerate(ragged):
        columns = [i for i, there in enumerate(pattern) if there]
        if columns:
            alone = seen.select(torch.tensor([sample]), columns)
            (expected,) = host.features(alone, [1], (2, 2))
            assert_rounded(whole.values[sample, columns], expected.values[0])


def test_a_batch_without_any_view_gives_masked_maps() -> None:
    (nothing,) = TeacherRunner(PatchTeacher()).features(views([[False, False]]), [2], (2, 2))
    assert not nothing.mask.any()
    assert nothing.values.shape == (1, 2, 2, 2, 12)


def test_fault_28_the_teacher_is_frozen_whatever_its_author_left() -> None:
    class Careless(PatchTeacher):
        def load(self, device: torch.device) -> nn.Module:
            return super().load(device).train()

    host = TeacherRunner(Careless())
    (features,) = host.features(views([[True]]), [1], (2, 2))
    assert not features.values.requires_grad
    assert host._model is not None
    assert not host._model.training
    assert not any(parameter.requires_grad for parameter in host._model.parameters())


def test_fault_51_teachers_leave_the_random_state_alone() -> None:
    class Noisy(PatchTeacher):
        def encode(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            torch.rand(7)
            return super().encode(model, *args, **kwargs)

    before = torch.get_rng_state()
    TeacherRunner(Noisy()).features(views([[True]]), [1], (2, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_teacher_of_random_weights_is_the_same_in_every_run() -> None:
    class Drawn(PatchTeacher):
        def load(self, device: torch.device) -> nn.Module:
            return nn.Linear(3, 12)

    seen = views([[True]])
    first = TeacherRunner(Drawn()).features(seen, [1], (2, 2))[0]
    torch.rand(3)
    assert torch.equal(TeacherRunner(Drawn()).features(seen, [1], (2, 2))[0].values, first.values)


@pytest.mark.parametrize("layout", [[[True, True]], [[True, False]]])
def test_fault_52_the_teacher_sees_float32_whatever_the_student_trains_in(layout: list[list[bool]]) -> None:
    host, seen = TeacherRunner(PatchTeacher()), views(layout)
    coarse = replace(seen, images=seen.images.bfloat16())
    (wanted,) = host.features(replace(seen, images=coarse.images.float()), [1], (2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = host.features(coarse, [1], (2, 2))
    assert found.values.dtype == torch.float32
    assert torch.equal(found.values, wanted.values)


def test_missing_requirements_are_named() -> None:
    with pytest.raises(ViewsError, match="'geometry' needs depth, intrinsics"):
        TeacherRunner(GeometryTeacher({"fov": None})).features(views([[True]]), [1], (2, 2))


def test_copies_share_the_network_and_pickles_leave_it_behind() -> None:
    host = TeacherRunner(PatchTeacher())
    (before,) = host.features(views([[True]]), [1], (2, 2))
    assert copy.deepcopy(host) is host
    again = pickle.loads(pickle.dumps(host))
    assert again._model is None
    (after,) = again.features(views([[True]]), [1], (2, 2))
    assert torch.equal(before.values, after.values)
