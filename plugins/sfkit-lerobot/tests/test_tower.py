"""What the vision tower gives (VEGA), and future frames (FRAPPE), of LeRobot's own classes."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, GradientError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.testing.checks import check_correspondence
from sfkit.testing.tiny import PatchTeacher
from sfkit.training.taps import Encoder, Residual, Taps

FRONT, WRIST = CAMERAS
SIDE = "observation.images.side"


def future(policy, batch, steps: int = 8, seed: int = 5) -> dict:
    """The batch with future frames, and those frames as a batch of its own."""
    ahead = tiny_lerobot_batch(policy, seed=seed, geometry=True)
    keys = [key for key in batch if "images" in key]
    return {**batch, **{f"{key}_in_{steps}_steps": ahead[key] for key in keys}}, {
        **batch,
        **{key: ahead[key] for key in keys},
    }


def test_the_towers_output_of_each_view(kind, build, adapter_of, views_of) -> None:
    policy = build(kind, cameras=(*CAMERAS, SIDE))
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    sites = Encoder(), Residual(0)
    _, captured, _ = Taps(adapter, sites).run(policy.forward, (dict(batch),), {})
    views = views_of(adapter, batch)
    tokens, embedded = (site.tokens(adapter, captured[site], views) for site in sites)
    assert tokens.dim == adapter.encoder_dim()
    side = 8 if kind == "smolvla" else 4  # SmolVLA's tower has four patches for each token of its language model
    assert tokens.grid == (side, side)
    connector = policy.get_submodule(adapter.connector_path)
    projected = connector(tokens.values.flatten(0, 1).flatten(1, 2)).reshape(embedded.values.shape)
    # The policies scale what the connector gives; directions are left alone.
    cosine = torch.nn.functional.cosine_similarity(projected, embedded.values, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)


def test_every_patch_moves_its_own_token_of_the_tower(kind, build, wrap) -> None:
    def perturb(batch: dict, view: int, box: tuple[slice, slice]) -> dict:
        picture = batch[CAMERAS[view]].clone()
        picture[:, :, box[0], box[1]] = 1 - picture[:, :, box[0], box[1]].round()
        return {**batch, CAMERAS[view]: picture}

    policy = wrap(build(kind), PatchTeacher(), student_layer="encoder")
    check_correspondence(policy, tiny_lerobot_batch(policy), perturb)


def test_vega_trains_the_tower_alone_of_a_real_policy(kind, build, wrap) -> None:
    policy = wrap(build(kind), PatchTeacher(), preset="vega")
    assert policy.spatial_forcing.config.pairs[0].student_layer == "encoder"
    batch = tiny_lerobot_batch(policy)
    grads = []
    for off in (True, False):
        policy.zero_grad()
        torch.manual_seed(0)
        with SpatialForcing.disabled(policy) if off else torch.enable_grad():
            policy(dict(batch))[0].backward()
        grads.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    changed = {name for name, grad in grads[0].items() if not torch.equal(grad, grads[1][name])}
    assert changed
    assert all("vision" in name for name in changed), sorted(changed)
    assert policy.spatial_forcing.status().reaches_policy


def test_fault_06_a_frozen_tower_that_is_aligned_is_an_error(build, wrap) -> None:
    policy = wrap(build("smolvla", train_expert_only=False, freeze_vision_encoder=True), PatchTeacher(), preset="vega")
    with pytest.raises(GradientError, match="freeze_vision_encoder=False"):
        policy(tiny_lerobot_batch(policy))


def test_only_the_teacher_sees_the_future_frame(kind, build, wrap) -> None:
    policy = build(kind)
    now = tiny_lerobot_batch(policy, geometry=True)
    batch, ahead = future(policy, now)
    policy = wrap(policy, None, pairs=[{"student_layer": 2, "teacher": "geometry", "future": 8}])
    torch.manual_seed(1)
    _, logs = policy(dict(batch))
    torch.manual_seed(1)
    with SpatialForcing.disabled(policy):
        plain, _ = policy(dict(now))
    assert logs["action_loss"] == float(plain.detach())
    handle = policy.spatial_forcing
    # The teacher is shown what the policy would see if the future frame were the present one.
    found = handle.adapter.future_views(ForwardCall({"batch": batch}, None), 8)
    wanted = handle.adapter.views(ForwardCall({"batch": ahead}, None))
    for name in ("images", "valid", "depth", "intrinsics", "source_to_view"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.names == wanted.names


@pytest.mark.parametrize("kind", ["smolvla", "pi05"])
def test_past_the_end_of_an_episode_nothing_is_compared(kind, build, wrap) -> None:
    policy = build(kind)
    batch, _ = future(policy, tiny_lerobot_batch(policy, geometry=True))
    policy = wrap(policy, None, pairs=[{"student_layer": 2, "teacher": PatchTeacher(), "future": 8}])
    ended = {f"{key}_in_8_steps_is_pad": torch.tensor([False, True]) for key in CAMERAS}
    views = policy.spatial_forcing.adapter.future_views(ForwardCall({"batch": {**batch, **ended}}, None), 8)
    assert views.present.tolist() == [[True, True], [False, False]]
    shown = {**batch, **{f"{key}_in_8_steps": batch[f"{key}_in_8_steps"].clone() for key in CAMERAS}, **ended}
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(policy(dict(shown))[1]["sf_loss"])
        for key in CAMERAS:
            shown[f"{key}_in_8_steps"][1] = 0.0
    assert losses[0] == losses[1] > 0


def test_what_is_not_known_of_the_future_frame_is_left_out(build, adapter_of) -> None:
    policy = build("pi0", cameras=(*CAMERAS, SIDE))
    adapter = adapter_of(policy)
    now = tiny_lerobot_batch(policy, missing=[FRONT], geometry=True)
    batch = {**now, **{f"{key}_in_3_steps": now[key] for key in (WRIST, SIDE)}}
    views = adapter.future_views(ForwardCall({"batch": batch}, None), 3)
    # Views are in the order of the tokens, and a depth map of another frame is no depth map.
    assert views.names == adapter.views(ForwardCall({"batch": now}, None)).names == (WRIST, SIDE, FRONT)
    assert views.present.tolist() == [[True, True, False]] * 2
    assert views.depth is None
    batch[f"{SIDE}_depth_in_3_steps"] = now[f"{SIDE}_depth"]
    views = adapter.future_views(ForwardCall({"batch": batch}, None), 3)
    assert views.depth.flatten(2).any(-1).tolist() == [[False, True, False]] * 2


def test_poses_are_those_of_the_future_frame(build, adapter_of) -> None:
    from sfkit.views.cameras import CameraRig, PoseTable

    policy = build("pi0")
    adapter = adapter_of(policy)
    moving = {
        key: camera.model_copy(update={"world_from_camera": None, "pose_key": "pose"})
        for key, camera in adapter.cameras.cameras.items()
    }
    poses = torch.eye(4).repeat(20, 1, 1)
    poses[:, 0, 3] = torch.arange(20.0)
    adapter.cameras = CameraRig(moving, {"pose": PoseTable(torch.arange(20), poses)})
    batch, _ = future(policy, tiny_lerobot_batch(policy, geometry=True))
    views = adapter.future_views(ForwardCall({"batch": batch}, None), 8)
    assert views.world_from_camera[:, 0, 0, 3].tolist() == [8, 9]


def test_a_batch_without_future_frames_says_what_to_do(kind, build, adapter_of) -> None:
    policy = build(kind)
    batch = tiny_lerobot_batch(policy)
    batch[f"{FRONT}_in_8_steps"] = batch[FRONT]
    with pytest.raises(ViewsError, match=f"no '{WRIST}_in_8_steps'") as caught:
        adapter_of(policy).future_views(ForwardCall({"batch": batch}, None), 8)
    assert "FutureFrames(dataset, steps=(8,))" in caught.value.remedy


def test_a_future_frame_is_not_normalized(build, adapter_of, views_of) -> None:
    from lerobot.configs.types import NormalizationMode

    policy = build("smolvla")
    seen = tiny_lerobot_batch(policy)[FRONT]
    policy.config.normalization_mapping["VISUAL"] = NormalizationMode.MEAN_STD
    stats = {key: {"mean": (0.5,) * 3, "std": (0.25,) * 3} for key in CAMERAS}
    adapter = adapter_of(policy, image_stats=stats)
    batch = tiny_lerobot_batch(policy)
    batch.update({f"{key}_in_2_steps": seen for key in CAMERAS})
    found = adapter.future_views(ForwardCall({"batch": batch}, None), 2)
    torch.testing.assert_close(found.images[:, 0], seen)
    assert not torch.allclose(found.images, views_of(adapter, batch).images, atol=0.01)


def test_an_adapter_that_knows_no_future_frames_says_so(build) -> None:
    from sfkit_lerobot import ACTAdapter
    from sfkit_lerobot.testing import tiny_act

    policy = tiny_act()
    with pytest.raises(ConfigError, match="cannot give a teacher the frame 8 steps ahead"):
        ACTAdapter(policy).future_views(ForwardCall({"batch": {}}, None), 8)
