"""Depth, calibration and poses from the dataset's metadata, under the policy's names for the cameras."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_policy_spatial_forcing.geometry import cameras_of
from lerobot_policy_spatial_forcing.trainer import Trainer
from sfkit_lerobot import camera_rig

from sfkit.errors import AdapterError, ConfigError


def test_the_cameras_are_those_of_the_dataset_itself(opened, data) -> None:
    found = cameras_of(opened.meta, Trainer(dataset=opened), None)
    expected = camera_rig(LeRobotDataset("local/x", root=data))
    assert found.cameras == expected.cameras
    assert set(found.poses) == set(expected.poses)
    for key, table in expected.poses.items():
        assert torch.equal(found.poses[key].index, table.index)
        assert torch.equal(found.poses[key].poses, table.poses)


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_fault_54_the_unit_is_that_of_the_open_dataset(unit, data) -> None:
    dataset = LeRobotDataset("local/x", root=data, depth_output_unit=unit)
    rig = cameras_of(dataset.meta, Trainer(dataset=dataset), None)
    assert {camera.depth_unit for camera in rig.cameras.values()} == {unit}


def test_without_a_calibration_the_depth_is_what_lerobot_tells(make, plain, data, tmp_path) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    shutil.copytree(data / "meta", tmp_path / "data" / "meta")
    (tmp_path / "data/meta/cameras.json").unlink()
    bare = LeRobotDatasetMetadata("local/bare", root=tmp_path / "data")
    dataset = SimpleNamespace(meta=bare, root=bare.root, depth_output_unit="mm")
    rig, whole = cameras_of(bare, Trainer(dataset=dataset), None), LeRobotDataset("local/whole", root=data)
    for key, camera in cameras_of(whole.meta, Trainer(dataset=whole), None).cameras.items():
        expected = camera.model_copy(update={"intrinsics": None, "world_from_camera": None, "pose_key": None})
        assert rig.cameras[key] == expected
    policy = make("sf_smolvla", pretrained_path=plain, dataset=bare)
    assert policy.spatial_forcing.adapter.cameras.cameras == rig.cameras


def test_cameras_follow_the_rename_map(opened) -> None:
    wrist = "observation.images.wrist"
    names = {wrist: "observation.images.camera1", f"{wrist}_depth": "observation.images.depth1"}
    rig = cameras_of(opened.meta, Trainer(rename_map=names, dataset=opened), None)
    assert rig.cameras["observation.images.camera1"].depth_key == "observation.images.depth1"
    assert wrist not in rig.cameras


def test_moving_transforms_are_refused(data) -> None:
    from torchvision.transforms import v2

    dataset = LeRobotDataset("local/x", root=data, image_transforms=v2.RandomHorizontalFlip())
    with pytest.raises(ConfigError, match="move pixels"):
        cameras_of(dataset.meta, Trainer(dataset=dataset), None)


def test_a_dataset_without_calibration_is_refused_at_once(make, plain, data, tmp_path) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    shutil.copytree(data / "meta", tmp_path / "data" / "meta")
    (tmp_path / "data/meta/cameras.json").unlink()
    bare = LeRobotDatasetMetadata("local/bare", root=tmp_path / "data")
    with pytest.raises(ConfigError, match="needs world_from_camera, and no camera has that"):
        make("sf_smolvla", {"teacher": '{"name": "geometry", "frame": "world"}'}, pretrained_path=plain, dataset=bare)
    rig = make("sf_smolvla", {"cameras": str(data / "meta/cameras.json")}, pretrained_path=plain)
    assert rig.spatial_forcing.adapter.cameras is not None
    with pytest.raises(ConfigError, match="does not exist"):
        make("sf_smolvla", {"cameras": "nowhere.json"}, pretrained_path=plain)


def test_a_dataset_without_depth_is_refused_at_once(make, plain, data, tmp_path) -> None:
    rig = json.loads((data / "meta/cameras.json").read_text())
    for camera in rig["cameras"].values():
        del camera["depth_key"]
    (tmp_path / "cameras.json").write_text(json.dumps(rig))
    with pytest.raises(ConfigError, match=r"needs depth, and no camera in .*cameras\.json names a depth map"):
        make("sf_smolvla", {"cameras": str(tmp_path / "cameras.json")}, pretrained_path=plain)


@pytest.mark.parametrize("kind", ["sf_smolvla", "sf_pi0"])
def test_a_dataset_without_pictures_is_refused(kind, make, data, vlm, tiny_pi, tmp_path) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    shutil.copytree(data / "meta", tmp_path / "data" / "meta")
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    info["features"] = {key: one for key, one in info["features"].items() if "images" not in key}
    (tmp_path / "data/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "data/meta/cameras.json").unlink()
    blind = LeRobotDatasetMetadata("local/blind", root=tmp_path / "data")
    shape = {"vlm_model_name": str(vlm), "load_vlm_weights": False, "num_vlm_layers": 2} if kind == "sf_smolvla" else {}
    with pytest.raises(AdapterError, match="no images among its input features"):
        make(kind, dataset=blind, **shape)


def test_fault_53_other_camera_names_name_the_rename_map(make, plain, tmp_path, data) -> None:
    rig = json.loads((data / "meta/cameras.json").read_text())
    rig["cameras"] = {f"{key}_other": value for key, value in rig["cameras"].items()}
    (tmp_path / "cameras.json").write_text(json.dumps(rig))
    with pytest.raises(ConfigError, match=r"None of the policy's cameras.*\n.*--rename_map"):
        make("sf_smolvla", {"cameras": str(tmp_path / "cameras.json")}, pretrained_path=plain)


def test_fault_50_a_checkpointed_policy_in_eval_mode_warns(make, plain) -> None:
    from sfkit_lerobot.testing import tiny_lerobot_batch

    from sfkit.errors import SfkitWarning

    policy = make("sf_smolvla", pretrained_path=plain)
    assert not policy.training
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.warns(SfkitWarning, match="in eval mode"):
        policy.forward(dict(batch))
    assert policy.spatial_forcing.steps == 0
