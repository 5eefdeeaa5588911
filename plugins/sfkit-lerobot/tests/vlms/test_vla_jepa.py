"""What is VLA-JEPA's own: frames of the future, and a prompt that is made in forward."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS

from sfkit.errors import ViewsError

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

FRONT, WRIST = CAMERAS


def test_the_first_of_several_frames_is_the_present_one(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("vla_jepa")
    raw = frames(policy)
    clips = {key: torch.stack([raw[key], raw[key].flip(0)], 1) for key in raw if "images" in key}
    _, views, student = tapped(adapter_of(policy), finish(policy, {**raw, **clips}), 1)
    torch.testing.assert_close(views.images[:, 1], raw[WRIST], atol=1e-5, rtol=0)
    assert torch.equal(views.depth[:, 1], raw[f"{WRIST}_depth"][:, 0])
    assert bool(student.mask.all())


def test_fault_25_views_are_in_the_order_of_the_policy(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("vla_jepa")
    raw = frames(policy)
    _, views, _ = tapped(adapter_of(policy), dict(reversed(finish(policy, raw).items())), 1)
    assert views.names == CAMERAS
    torch.testing.assert_close(views.images[:, 0], raw[FRONT], atol=1e-5, rtol=0)


def test_cameras_of_different_sizes_are_refused(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("vla_jepa")
    raw = frames(policy)
    raw[WRIST] = raw[WRIST][:, :, :32]
    with pytest.raises(ViewsError, match="expected one size"):
        tapped(adapter_of(policy), finish(policy, raw), 1)


def test_fault_26_pictures_normalized_twice_are_an_error(build, batch_of, adapter_of) -> None:
    from lerobot.configs.types import NormalizationMode

    policy = build("vla_jepa")
    batch = batch_of(policy)
    policy.config.normalization_mapping = {"VISUAL": NormalizationMode.MEAN_STD}
    with pytest.raises(ViewsError, match="normalizes again"):
        adapter_of(policy).prompt(batch)
