"""How depth, calibration and poses reach the teacher."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot import policy_features, strip_geometry
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch, tiny_rig

from sfkit.errors import AdapterError, ConfigError, ViewsError
from sfkit.views.cameras import CameraRig, PoseTable
from sfkit.views.geometry import unproject

FRONT, WRIST = CAMERAS
DEPTH = f"{FRONT}_depth"


def _changed(rig: CameraRig, **changes) -> CameraRig:
    """The rig with its front camera changed."""
    return CameraRig({**rig.cameras, FRONT: rig.cameras[FRONT].model_copy(update=changes)}, rig.poses)


def test_depth_and_intrinsics_are_those_of_the_view(kind, build, adapter_of, views_of) -> None:
    # A point unprojected from the view must be the one unprojected from the dataset's own image.
    policy = build(kind, image_shape=(3, 48, 64))
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, batch_size=1, geometry=True)
    batch[DEPTH] = (0.5 + 0.01 * torch.arange(64)).expand(1, 1, 48, 64)
    views = views_of(adapter, batch)
    expected = unproject(batch[DEPTH][0, 0], adapter.cameras.intrinsics(FRONT, (48, 64)))
    found = unproject(views.depth[0, 0], views.intrinsics[0, 0])
    inverse = torch.linalg.inv(views.source_to_view[0, 0])
    for row, column in ((30, 20), (25, 50), (40, 5)):
        x, y, _ = (inverse @ torch.tensor([float(column), float(row), 1.0])).tolist()
        # Depth is the nearest pixel's, so the point may be half a pixel off: 1 cm of depth, and its ray.
        assert (found[row, column] - expected[round(y), round(x)]).abs().max() < 0.015
    assert bool((views.depth[0, 0][~views.valid[0, 0]] == 0).all())


def test_depth_of_another_size_has_the_same_field_of_view(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    adapter, side = adapter_of(policy), build(kind).config.image_features[FRONT].shape[1]
    batch = tiny_lerobot_batch(policy, batch_size=1, geometry=True)
    small = 0.4 + torch.rand(1, 1, side // 2, side // 2)
    batch[DEPTH] = small
    views = views_of(adapter, batch)
    assert torch.equal(views.depth[0, 0], small[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 1, 64, 64), (2, 3, 1, 64, 64)])
def test_shapes_of_depth_maps(shape, build, adapter_of, views_of) -> None:
    policy = build("smolvla")
    batch = tiny_lerobot_batch(policy, geometry=True)
    batch[DEPTH] = torch.rand(shape)
    expected = batch[DEPTH].reshape(2, -1, 64, 64)[:, -1]
    assert torch.equal(views_of(adapter_of(policy), batch).depth[:, 0], expected)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 64, 64, 1), (64, 64)])
def test_other_shapes_are_no_depth_maps(shape, build, adapter_of, views_of) -> None:
    policy = build("smolvla")
    batch = {**tiny_lerobot_batch(policy, geometry=True), DEPTH: torch.rand(shape)}
    with pytest.raises(ViewsError, match=r"expected \(b, h, w\)"):
        views_of(adapter_of(policy), batch)


def test_fault_54_millimeters_are_meters_times_a_thousand(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, geometry=True)
    meters = views_of(adapter, batch).depth
    adapter.cameras = _changed(adapter.cameras, depth_unit="mm")
    torch.testing.assert_close(views_of(adapter, {**batch, DEPTH: batch[DEPTH] * 1000}).depth, meters)


def test_fault_54_an_unknown_unit_is_an_error(kind, build, wrap) -> None:
    policy = build(kind)
    wrap(policy, cameras=_changed(tiny_rig(policy), depth_unit=None))
    with pytest.raises(ConfigError, match="unit"):
        policy(tiny_lerobot_batch(policy, geometry=True))


def test_missing_depth_lists_expected_and_present_keys(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    with pytest.raises(ViewsError) as caught:
        policy(tiny_lerobot_batch(policy))
    for key in (DEPTH, f"{WRIST}_depth", FRONT, "observation.state"):
        assert key in str(caught.value)


def test_missing_cameras_are_explained(kind, build, wrap) -> None:
    policy = wrap(build(kind), cameras=None)
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.raises(ViewsError, match="No cameras were given"):
        policy(batch)
    camera = tiny_rig(policy).cameras[FRONT]
    policy.spatial_forcing.adapter.cameras = CameraRig({"observation.images.top": camera})
    with pytest.raises(ViewsError, match=r"cameras given are .*top; the policy's are .*front"):
        policy(batch)


def test_what_is_no_rig_is_refused_by_wrap(build, wrap) -> None:
    with pytest.raises(ConfigError, match="expected a CameraRig"):
        wrap(build("smolvla"), cameras={"a": 1})


def test_missing_poses_are_explained(kind, build, wrap) -> None:
    policy = build(kind, cameras=[FRONT])
    rig = _changed(tiny_rig(policy), world_from_camera=None, pose_key="camera_pose.front")
    wrap(policy, ("geometry", {"frame": "world"}), cameras=rig)
    with pytest.raises(ViewsError, match=r"looked for in the columns camera_pose\.front"):
        policy(tiny_lerobot_batch(policy, geometry=True))


def test_a_camera_without_depth_is_masked(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    batch = tiny_lerobot_batch(policy, geometry=True)
    del batch[f"{WRIST}_depth"]
    policy(batch)
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] == pytest.approx(0.5)


def test_moving_cameras_are_looked_up_by_the_global_index(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([1.0, 2.0, 3.0])
    rig = _changed(adapter.cameras, world_from_camera=None, pose_key="pose")
    adapter.cameras = CameraRig(rig.cameras, {"pose": PoseTable(torch.tensor([10, 20, 30]), poses)})
    batch = {**tiny_lerobot_batch(policy, geometry=True), "index": torch.tensor([30, 10])}
    assert views_of(adapter, batch).world_from_camera[:, 0, 0, 3].tolist() == [3.0, 1.0]
    unknown = views_of(adapter, {**batch, "index": torch.tensor([[30], [11]])}).world_from_camera
    assert unknown[:, 0].isnan().any(-1).any(-1).tolist() == [False, True]
    # Without an index only the camera at rest has a pose.
    del batch["index"]
    assert views_of(adapter, batch).world_from_camera.isnan().flatten(2).any(-1).tolist() == [[True, False]] * 2


def test_pictures_of_another_size_than_calibrated_are_an_error(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    with pytest.raises(ViewsError, match="its calibration is for"):
        policy(tiny_lerobot_batch(policy, geometry=True, image_size=(32, 32)))


def test_fault_52_depth_in_bfloat16_is_an_error(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.raises(ViewsError, match="cast_forward_inputs=False"):
        views_of(adapter_of(policy), {**batch, DEPTH: batch[DEPTH].bfloat16()})


# ------------------------------------------------------------------------ depth and calibration are no policy inputs


def _image(channels: int, **info) -> dict:
    return {"dtype": "image", "shape": (48, 64, channels), "names": ["height", "width", "channels"], "info": info}


FEATURES = {
    FRONT: _image(3),
    DEPTH: _image(1, is_depth_map=True, depth_unit="mm"),
    "observation.images.legacy": {**_image(1), "video_info": {"video.is_depth_map": True}},
    "observation.images.infrared": _image(1),
    "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
    "observation.camera.front.intrinsics": {"dtype": "float32", "shape": (9,), "names": None},
    "observation.wrist_pose": {"dtype": "float32", "shape": (16,), "names": None},
    "camera_pose.wrist": {"dtype": "float32", "shape": (16,), "names": None},
    "label.object_position": {"dtype": "float32", "shape": (3,), "names": None},
    "action": {"dtype": "float32", "shape": (4,), "names": None},
    "index": {"dtype": "int64", "shape": (1,), "names": None},
}


def test_fault_53_geometry_never_becomes_a_policy_feature() -> None:
    from lerobot.utils.feature_utils import dataset_to_policy_features

    naive = dataset_to_policy_features(FEATURES)
    assert {DEPTH, "observation.camera.front.intrinsics"} <= set(naive), "LeRobot itself would take them"
    assert set(policy_features(FEATURES)) == {FRONT, "observation.state", "action", "observation.wrist_pose"}
    camera = tiny_rig_camera(pose_key="observation.wrist_pose")
    assert set(policy_features(FEATURES, CameraRig({WRIST: camera}))) == {FRONT, "observation.state", "action"}


def tiny_rig_camera(**fields):
    from sfkit.views.cameras import Camera

    return Camera(width=64, height=48, intrinsics=((1, 0, 0), (0, 1, 0), (0, 0, 1)), **fields)


def test_fault_53_strip_geometry_cleans_an_existing_config(build) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    config = build("pi0").config
    config.input_features[DEPTH] = PolicyFeature(FeatureType.VISUAL, (1, 48, 64))
    config.input_features["observation.camera.front.intrinsics"] = PolicyFeature(FeatureType.STATE, (9,))
    config.input_features["observation.wrist_pose"] = PolicyFeature(FeatureType.STATE, (16,))
    rig = CameraRig({WRIST: tiny_rig_camera(pose_key="observation.wrist_pose")})
    removed = strip_geometry(config, rig)
    assert removed == [DEPTH, "observation.camera.front.intrinsics", "observation.wrist_pose"]
    assert set(config.input_features) == {*CAMERAS, "observation.state"}
    assert strip_geometry(config, rig) == []


def test_fault_53_a_policy_that_was_given_depth_is_refused(kind, build, wrap) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    policy = build(kind)
    policy.config.input_features[DEPTH] = PolicyFeature(FeatureType.VISUAL, (1, 48, 64))
    with pytest.raises(AdapterError, match=r"front_depth: .*\n.*strip_geometry"):
        wrap(policy, cameras=None)
