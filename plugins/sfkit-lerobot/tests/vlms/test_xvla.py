"""What is X-VLA's own: one aligned view, ImageNet's values, and an encoder whose blocks end with a norm."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS

from sfkit.errors import AdapterError, ViewsError

FRONT, WRIST = CAMERAS


def test_fault_24_the_letterbox_is_masked_and_black(build, batch_of, adapter_of, tapped) -> None:
    policy = build("xvla", image_shape=(3, 96, 128))
    _, views, student = tapped(adapter_of(policy), batch_of(policy), 1)
    assert student.mask.int().tolist() == [[[[0] * 4] + [[1] * 4] * 3]] * 2
    assert bool((views.images[:, :, :, :32].abs() < 1e-6).all())


def test_fault_25_the_first_camera_of_the_batch_is_aligned(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("xvla", empty_cameras=1)
    adapter, raw = adapter_of(policy), frames(policy, missing=(FRONT, "observation.images.empty_camera_0"))
    _, views, before = tapped(adapter, finish(policy, raw), 0)
    assert views.names == (WRIST,)
    torch.testing.assert_close(views.images[:, 0], raw[WRIST], atol=1e-5, rtol=0)
    changed = {**raw, WRIST: raw[WRIST].clone()}
    changed[WRIST][:, :, 32:64, 96:] = 1 - changed[WRIST][:, :, 32:64, 96:].round()
    moved = (tapped(adapter, finish(policy, changed), 0)[2].values - before.values).norm(dim=-1)
    assert moved.flatten(1).argmax(1).tolist() == [4 + 3] * 2


def test_fault_26_pictures_that_nobody_normalized_are_an_error(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("xvla")
    raw = frames(policy)
    batch = {**finish(policy, raw), **{key: raw[key] for key in CAMERAS}}
    with pytest.raises(ViewsError, match=r"All pixels of the batch are in \[0, 1\]"):
        tapped(adapter_of(policy), batch, 1)
    _, views, _ = tapped(adapter_of(policy, imagenet=False), batch, 1)
    torch.testing.assert_close(views.images[:, 0], raw[FRONT])


def test_views_without_a_resize_are_the_pictures_themselves(build, batch_of, adapter_of, tapped) -> None:
    policy = build("xvla", resize_imgs_with_padding=None, image_shape=(3, 64, 96))
    _, views, student = tapped(adapter_of(policy), batch_of(policy), 1)
    assert (views.size, student.grid) == ((64, 96), (2, 3))
    policy = build("xvla", resize_imgs_with_padding=None, image_shape=(3, 60, 96))
    with pytest.raises(AdapterError, match="tokens of 32 pixels"):
        tapped(adapter_of(policy), batch_of(policy), 1)


def test_both_freezing_options_leave_the_projection_of_pictures(build, batch_of, adapter_of, tapped) -> None:
    policy = build("xvla", freeze_vision_encoder=True, freeze_language_encoder=True)
    _, _, student = tapped(adapter_of(policy), batch_of(policy), 2)
    student.values.square().sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
    assert {name.split(".")[2] for name in reached} == {"multi_modal_projector"}
