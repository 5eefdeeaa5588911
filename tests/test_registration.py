"""The jewel: the student token and the teacher cell that move most are those of the patch that was perturbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sfkit.errors import SfkitError
from sfkit.testing.policies import TinyPolicy, tiny_batch
from sfkit.testing.registration import check_registration
from sfkit.types import FeatureMap


def perturb(batch: dict[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
    batch = {key: value.clone() for key, value in batch.items()}
    batch["images"][:, view, :, box[0], box[1]] = 1 - batch["images"][:, view, :, box[0], box[1]]
    batch["depth"][:, view, box[0], box[1]] += 0.4
    return batch


@pytest.mark.parametrize("teacher", [None, "geometry"])
def test_fault_20_tiny_is_registered(wrapped: Callable[..., TinyPolicy], teacher: Any) -> None:
    policy = wrapped(teacher, depth=0)
    check_registration(policy, tiny_batch(), perturb)


def test_fault_20_exchanged_axes_are_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(depth=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens

    def transposed(hidden: Any, views: Any) -> FeatureMap:
        right = real(hidden, views)
        return FeatureMap(right.values.transpose(2, 3), right.mask)

    adapter.visual_tokens = transposed
    with pytest.raises(SfkitError, match=r"row 0, column 3 of view 0.*student.*row 3, column 0"):
        check_registration(policy, tiny_batch(), perturb)


def test_a_span_off_by_one_is_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(depth=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens
    adapter.visual_tokens = lambda hidden, views: real(hidden.roll(-1, dims=1), views)
    with pytest.raises(SfkitError, match="student"):
        check_registration(policy, tiny_batch(), perturb)


def test_fault_25_exchanged_cameras_are_found(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped("geometry", depth=0)
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.views

    def exchanged(call: Any) -> Any:
        import torch

        views = real(call)
        return views.select(torch.arange(len(views.images)), [1, 0])

    adapter.views = exchanged
    with pytest.raises(SfkitError, match="teacher"):
        check_registration(policy, tiny_batch(), perturb)
