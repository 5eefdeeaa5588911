"""The jewel: the student token and the teacher cell that move most are those of the patch that was perturbed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from sfkit import SpatialForcing
from sfkit.errors import SfkitError
from sfkit.testing.checks import check_correspondence
from sfkit.testing.tiny import PatchTeacher, PatchTeacherOptions, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.views.types import FeatureMap


def perturb(batch: dict[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
    batch = {key: value.clone() for key, value in batch.items()}
    batch["images"][:, view, :, box[0], box[1]] = 1 - batch["images"][:, view, :, box[0], box[1]]
    batch["depth"][:, view, box[0], box[1]] += 0.4
    return batch


@pytest.mark.parametrize("teacher", [None, "geometry"])
def test_fault_20_tiny_corresponds(wrapped: Callable[..., TinyPolicy], teacher: Any) -> None:
    policy = wrapped(teacher, student_layer=0)
    check_correspondence(policy, tiny_batch(), perturb)


def test_fault_20_exchanged_axes_are_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(student_layer=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens

    def transposed(hidden: Any, views: Any) -> FeatureMap:
        right = real(hidden, views)
        return FeatureMap(right.values.transpose(2, 3), right.mask)

    adapter.visual_tokens = transposed
    with pytest.raises(SfkitError, match=r"row 0, column 3 of view 0.*student.*row 3, column 0"):
        check_correspondence(policy, tiny_batch(), perturb)


def test_a_span_off_by_one_is_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(student_layer=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens
    adapter.visual_tokens = lambda hidden, views: real(hidden.roll(-1, dims=1), views)
    with pytest.raises(SfkitError, match="student"):
        check_correspondence(policy, tiny_batch(), perturb)


def test_fault_25_exchanged_cameras_are_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped("geometry", student_layer=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.views

    def exchanged(call: Any) -> Any:
        views = real(call)
        return views.select(torch.arange(len(views.images)), [1, 0])

    adapter.views = exchanged
    with pytest.raises(SfkitError, match="teacher"):
        check_correspondence(policy, tiny_batch(), perturb)


class Letterboxing(TinyPolicy):
    """Takes wide images, and puts black bars above and below them."""

    def act(self, batch: dict[str, Any]) -> torch.Tensor:
        return super().act({**batch, "images": F.pad(batch["images"], (0, 0, 8, 8))})


class BarsAreOnBothSides(TinyAdapter):
    """Its views have the bars where the policy puts them."""

    above = 8

    def views(self, call: Any) -> Any:
        batch = call.arguments["batch"]
        images = F.pad(batch["images"], (0, 0, self.above, 16 - self.above))
        valid = F.pad(torch.ones_like(batch["images"][:, :, 0], dtype=torch.bool), (0, 0, self.above, 16 - self.above))
        shown = {**call.arguments, "batch": {**batch, "images": images}}
        views = super().views(type(call)(shown, call.output))
        return type(views)(views.images, valid, views.names)


class BarsAreBelow(BarsAreOnBothSides):
    """Its views have them elsewhere."""

    above = 0


@pytest.mark.parametrize("adapter", [BarsAreOnBothSides, BarsAreBelow])
def test_fault_24_a_wrong_letterbox_is_found(adapter: type[BarsAreOnBothSides]) -> None:
    torch.manual_seed(0)
    policy = Letterboxing()
    SpatialForcing.wrap(policy, PatchTeacher(), student_layer=0, adapter=adapter(policy))

    def change(batch: dict[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
        rows = slice(box[0].start - adapter.above, box[0].stop - adapter.above)
        images = batch["images"].clone()
        images[:, view, :, rows, box[1]] = 1 - images[:, view, :, rows, box[1]]
        return {**batch, "images": images}

    batch = tiny_batch(geometry=False)
    batch["images"] = batch["images"][..., :16, :]
    if adapter is BarsAreBelow:
        with pytest.raises(SfkitError, match=r"row 0, column 0 of view 0 moved the student's row 1, column 0"):
            check_correspondence(policy, batch, change)
    else:
        check_correspondence(policy, batch, change)


@pytest.mark.parametrize("side", [3, 4, 7, 16])
def test_fault_20_a_teacher_with_its_own_grid_corresponds(side: int, tiny: Callable[..., Any]) -> None:
    plain = tiny()
    policy = SpatialForcing.wrap(
        plain, PatchTeacher(PatchTeacherOptions(grid=side)), student_layer=0, adapter=TinyAdapter(plain)
    )
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.views
    check_correspondence(policy, tiny_batch(), perturb)

    def mirrored(call: Any) -> Any:
        views = real(call)
        return dataclasses.replace(views, images=views.images.flip(-1))

    adapter.views = mirrored
    with pytest.raises(SfkitError, match=f"the teacher's row .* (on its grid of {side}x{side}|most)"):
        check_correspondence(policy, tiny_batch(), perturb)


def test_a_change_that_changes_nothing_is_found(wrapped: Callable[..., TinyPolicy]) -> None:
    with pytest.raises(SfkitError, match="moved nothing"):
        check_correspondence(wrapped(student_layer=0), tiny_batch(), lambda batch, view, box: batch)
