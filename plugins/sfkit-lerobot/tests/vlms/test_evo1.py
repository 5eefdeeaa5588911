"""What is EVO1's own: places for views that nobody fills, branches that train apart, and checkpointing."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS

from sfkit.errors import ViewsError

FRONT, WRIST = CAMERAS
SIDE = "observation.images.side"


def test_fault_23_and_25_a_missing_camera_is_last_and_masked(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("evo1", cameras=(*CAMERAS, SIDE), empty_cameras=1, max_views=5)
    raw = frames(policy, missing=(FRONT, "observation.images.empty_camera_0"))
    policy.config.empty_cameras = 2
    adapter = adapter_of(policy)
    _, views, before = tapped(adapter, finish(policy, raw), 0)
    assert views.names == (WRIST, SIDE, FRONT, "observation.images.empty_camera_0")
    assert views.present.tolist() == [[True, True, False, False]] * 2
    assert before.mask.flatten(2).all(-1).tolist() == [[True, True, False, False]] * 2
    assert bool((views.depth[:, 2:] == 0).all())
    changed = {**raw, SIDE: raw[SIDE].clone()}
    changed[SIDE][:, :, 16:32, 48:] = 1 - changed[SIDE][:, :, 16:32, 48:].round()
    moved = (tapped(adapter, finish(policy, changed), 0)[2].values - before.values).norm(dim=-1)
    assert moved.flatten(1).argmax(1).tolist() == [16 + 4 + 3] * 2


@pytest.mark.parametrize("branch", ["finetune_language_model", "finetune_vision_model"])
def test_fault_06_one_trainable_branch_is_enough(branch, build, batch_of, wrap) -> None:
    flags = {"finetune_vlm": True, "finetune_language_model": False, "finetune_vision_model": False, branch: True}
    policy = wrap(build("evo1", apply_training_stage_defaults=False, finetune_action_head=True, **flags))
    policy.forward(batch_of(policy))
    assert policy.spatial_forcing.status().reaches_policy


@pytest.mark.parametrize("reentrant", [False, True])
def test_fault_03_and_04_checkpointing_evo1_changes_no_gradient(reentrant, build, batch_of, wrap) -> None:
    gradients = []
    for checkpointing in (False, True):
        options = {"enable_gradient_checkpointing": checkpointing, "gradient_checkpointing_use_reentrant": reentrant}
        policy = wrap(build("evo1", **options), student_layer=2, self_check=not reentrant)
        batch = batch_of(policy)
        torch.manual_seed(5)
        loss, _ = policy.forward(batch)
        loss.backward()
        (tap,) = policy.spatial_forcing.taps.at.values()
        assert (tap.fired, tap.armed) == (1, False)
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any("vision_tower" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_fault_26_pictures_that_evo1_would_clamp_are_an_error(build, batch_of, adapter_of) -> None:
    policy = build("evo1")
    batch = batch_of(policy)
    batch[FRONT] = batch[FRONT] * 255
    with pytest.raises(ViewsError, match="EVO1 would change it"):
        adapter_of(policy).prompt(batch)
