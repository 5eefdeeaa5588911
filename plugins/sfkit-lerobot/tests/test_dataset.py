"""From LeRobot datasets to camera rigs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sfkit_lerobot import camera_rig, policy_features
from sfkit_lerobot.dataset import pose_table

from sfkit.errors import ConfigError
from sfkit.policies.base import ForwardCall

KEY, DEPTH, POSE = "observation.images.wrist", "observation.images.wrist_depth", "camera_pose.wrist"
CAMERA = {
    "width": 16,
    "height": 12,
    "intrinsics": [[16, 0, 7.5], [0, 16, 5.5], [0, 0, 1]],
    "depth_key": DEPTH,
    "pose_key": POSE,
}
EPISODES, LENGTH = 3, 4
METERS = 0.75


def _depth_feature(**info) -> dict:
    return {"dtype": "image", "shape": (12, 16, 1), "names": ["height", "width", "channels"], "info": info}


def _pose(index: int) -> np.ndarray:
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = index, 2 * index, 0.5
    return pose


def _record(root: Path, depth_dtype: type = np.uint16) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        KEY: {"dtype": "image", "shape": (12, 16, 3), "names": ["height", "width", "channels"]},
        DEPTH: _depth_feature(is_depth_map=True),
        POSE: {"dtype": "float32", "shape": (16,), "names": None},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    dataset = LeRobotDataset.create("local/toy", fps=10, features=features, root=root, use_videos=False)
    # LeRobot takes integers for millimeters and floats for meters.
    value = METERS * 1000 if depth_dtype is np.uint16 else METERS
    for episode in range(EPISODES):
        for step in range(LENGTH):
            dataset.add_frame(
                {
                    KEY: np.full((12, 16, 3), 9 + episode * LENGTH + step, dtype=np.uint8),
                    DEPTH: np.full((12, 16, 1), value, dtype=depth_dtype),
                    POSE: _pose(episode * LENGTH + step).reshape(16),
                    "observation.state": np.zeros(4, np.float32),
                    "action": np.zeros(4, np.float32),
                    "task": "wave",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    (root / "meta" / "cameras.json").write_text(json.dumps({"format": "sfkit.cameras/1", "cameras": {KEY: CAMERA}}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / "toy"
    _record(root)
    return root


def _open(root: Path, **arguments):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/toy", root=root, **arguments)


def _edited(root: Path, tmp_path: Path, name: str, edit) -> Path:
    """A copy of the dataset with one JSON file of its metadata changed."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = copy / "meta" / name
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return copy


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_fault_54_the_unit_is_that_of_lerobots_depth(unit, root) -> None:
    dataset = _open(root, depth_output_unit=unit)
    rig = camera_rig(dataset)
    assert rig.cameras[KEY].depth_unit == unit
    assert float(dataset[0][DEPTH].mean()) * rig.depth_scale(KEY) == pytest.approx(METERS)


def test_fault_54_lerobots_default_is_millimeters(root) -> None:
    assert camera_rig(_open(root)).depth_scale(KEY) == 0.001


def test_fault_54_depth_recorded_in_meters(tmp_path) -> None:
    _record(tmp_path / "meters", np.float32)
    dataset = _open(tmp_path / "meters")
    assert float(dataset[0][DEPTH].mean()) * camera_rig(dataset).depth_scale(KEY) == pytest.approx(METERS)


def _forget_unit(info) -> None:
    del info["features"][DEPTH]["info"]["depth_unit"]


def test_fault_54_an_unrecorded_unit_must_be_stated(root, tmp_path, caplog) -> None:
    copy = _edited(root, tmp_path, "info.json", _forget_unit)
    with pytest.raises(ConfigError, match="not recorded"):
        camera_rig(_open(copy))
    cameras = {"format": "sfkit.cameras/1", "cameras": {KEY: {**CAMERA, "depth_unit": "mm"}}}
    (copy / "meta" / "cameras.json").write_text(json.dumps(cameras))
    dataset = _open(copy)
    assert float(dataset[0][DEPTH].mean()) * camera_rig(dataset).depth_scale(KEY) == pytest.approx(METERS)


def test_fault_54_contradicting_units_are_an_error(root, tmp_path) -> None:
    copy = _edited(root, tmp_path, "cameras.json", lambda data: data["cameras"][KEY].update(depth_unit="m"))
    with pytest.raises(ConfigError, match="arrives in mm"):
        camera_rig(_open(copy))


def test_fault_53_the_datasets_own_geometry_is_no_policy_feature(root) -> None:
    assert set(policy_features(_open(root).meta.features)) == {KEY, "observation.state", "action"}


@pytest.mark.parametrize("episodes", [None, [1], [2, 0]])
def test_poses_are_found_by_the_global_index(episodes, root) -> None:
    dataset = _open(root, episodes=episodes)
    rig = camera_rig(dataset)
    batch = torch.utils.data.default_collate([dataset[i] for i in (len(dataset) - 1, 0)])
    poses = rig.pose(KEY, batch["index"], 2)
    assert poses.dtype == torch.float32
    for pose, index in zip(poses, batch["index"].tolist(), strict=True):
        assert torch.equal(pose, torch.from_numpy(_pose(index)))
    outside = rig.pose(KEY, torch.tensor([0 if episodes == [1] else 99]), 1)
    assert bool(outside.isnan().any())


def test_a_pose_column_must_hold_transforms_by_rows(root) -> None:
    dataset = _open(root)
    with pytest.raises(ConfigError, match="holds 4 numbers"):
        pose_table(dataset, "action")
    with pytest.raises(ConfigError, match=r"'nothing'.*camera_pose\.wrist"):
        pose_table(dataset, "nothing")

    transposed = dataset.hf_dataset.with_format("numpy").map(
        lambda row: {POSE: row[POSE].reshape(4, 4).T.reshape(16)}, keep_in_memory=True
    )
    with pytest.raises(ConfigError, match="by rows"):
        pose_table(SimpleNamespace(meta=dataset.meta, hf_dataset=transposed), POSE)


def test_a_depth_map_that_the_dataset_lacks_is_an_error(root, tmp_path) -> None:
    copy = _edited(root, tmp_path, "cameras.json", lambda data: data["cameras"][KEY].update(depth_key="depth"))
    with pytest.raises(ConfigError, match=f"'depth'; depth maps of the dataset: {DEPTH}"):
        camera_rig(_open(copy))


def test_a_color_picture_is_no_depth_map(root, tmp_path) -> None:
    copy = _edited(root, tmp_path, "cameras.json", lambda data: data["cameras"][KEY].update(depth_key=KEY))
    with pytest.raises(ConfigError, match="color image"):
        camera_rig(_open(copy))


def test_fault_27_geometric_augmentation_is_refused(root) -> None:
    from lerobot.transforms import ImageTransforms, ImageTransformsConfig
    from torchvision.transforms import v2

    with pytest.raises(ConfigError, match="move pixels"):
        camera_rig(_open(root, image_transforms=ImageTransforms(ImageTransformsConfig(enable=True))))
    with pytest.raises(ConfigError, match="move pixels"):
        camera_rig(_open(root, image_transforms=v2.Compose([v2.RandomHorizontalFlip()])))
    color = ImageTransformsConfig(enable=True)
    del color.tfs["affine"]
    for harmless in (ImageTransforms(ImageTransformsConfig(enable=False)), ImageTransforms(color)):
        camera_rig(_open(root, image_transforms=harmless))


def test_the_recording_of_the_repository_is_readable() -> None:
    root = Path(__file__).parents[3] / "plugins" / "sfkit-demo" / "src" / "sfkit_demo" / "recording"
    if not root.is_dir():
        pytest.skip("not in a checkout of the repository")
    rig = camera_rig(_open(root))
    assert {camera.depth_unit for camera in rig.cameras.values()} == {"mm"}
    assert rig.pose("observation.images.wrist", torch.tensor([0, 5]), 2).isfinite().all()
    assert rig.pose("observation.images.corner2", None, 2).shape == (2, 4, 4)


def test_future_frames_stand_beside_the_present_ones(root) -> None:
    from sfkit_lerobot import FutureFrames

    dataset = _open(root)
    ahead = FutureFrames(dataset, steps=(1, 3))
    assert len(ahead) == EPISODES * LENGTH
    for index in range(len(ahead)):
        sample, place = ahead[index], index % LENGTH
        for steps in (1, 3):
            ended = bool(sample[f"{KEY}_in_{steps}_steps_is_pad"])
            assert ended is (place + steps >= LENGTH)
            if not ended:
                for key in (KEY, DEPTH):
                    assert torch.equal(sample[f"{key}_in_{steps}_steps"], dataset[index + steps][key])
        assert torch.equal(sample[KEY], dataset[index][KEY])
    batch = next(iter(torch.utils.data.DataLoader(ahead, batch_size=5)))
    assert batch[f"{KEY}_in_3_steps_is_pad"].tolist() == [False, True, True, True, False]
    for steps in ((), (0,), (2, -1)):
        with pytest.raises(ConfigError, match="1 step ahead or more"):
            FutureFrames(dataset, steps)


def test_future_frames_pass_lerobots_processors(root, build, adapter_of) -> None:
    from sfkit_lerobot import FutureFrames
    from sfkit_lerobot.testing import tiny_pi0_processors

    from sfkit import SpatialForcing

    dataset = _open(root, delta_timestamps={"action": [step / 10 for step in range(8)]})
    policy = build("pi0", cameras=(KEY,), image_shape=(3, 12, 16))
    preprocess, _ = tiny_pi0_processors(policy, dataset.meta.stats, ["wave"])
    ahead = FutureFrames(dataset, steps=(1,))
    batch = preprocess(next(iter(torch.utils.data.DataLoader(ahead, batch_size=4))))
    pair = {"student_layer": 2, "teacher": ("geometry", {"calibration_steps": 0}), "future": 1}
    SpatialForcing.wrap(policy, pairs=[pair], cameras=camera_rig(dataset))
    assert policy.spatial_forcing.adapter.future_views(ForwardCall({"batch": batch}, None), 1).present.tolist() == [
        [True], [True], [True], [False],
    ]  # fmt: skip
    seen = []
    host = policy.spatial_forcing.runners[0]
    features = host.features
    host.features = lambda views, *rest, **named: seen.append(views) or features(views, *rest, **named)
    policy(batch)
    (views,) = seen
    shown = (views.images * views.valid.unsqueeze(2)).amax((-3, -2, -1))[:, 0] * 255
    assert [round(value) for value in shown.tolist()] == [10, 11, 12, 0]  # each frame is as bright as its number
    assert views.world_from_camera is not None
    assert views.world_from_camera[:3, 0, 0, 3].tolist() == [1, 2, 3]
