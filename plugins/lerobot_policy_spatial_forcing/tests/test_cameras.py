"""Depth, calibration and poses from the dataset's metadata, under the policy's names for the cameras."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_policy_spatial_forcing.geometry import cameras_of
from lerobot_policy_spatial_forcing.trainer import Trainer, read_trainer
from sfkit_lerobot import camera_rig

from sfkit.errors import AdapterError, ConfigError

FLAGS = ["--dataset.repo_id=local/x", "--policy.type=sf_smolvla", "--policy.sf.teacher=geometry"]


def test_the_cameras_are_those_of_the_dataset_itself(meta, data) -> None:
    found, expected = cameras_of(meta, Trainer(), None), camera_rig(LeRobotDataset("local/x", root=data))
    assert found.cameras == expected.cameras
    assert set(found.poses) == set(expected.poses)
    for key, table in expected.poses.items():
        assert torch.equal(found.poses[key].index, table.index)
        assert torch.equal(found.poses[key].poses, table.poses)


def test_fault_54_the_unit_is_the_one_that_the_trainer_asks_the_dataset_for(meta) -> None:
    for flags, unit in (([], "mm"), (["--dataset.depth_output_unit=m"], "m")):
        rig = cameras_of(meta, read_trainer([*FLAGS, *flags]), None)
        assert {camera.depth_unit for camera in rig.cameras.values()} == {unit}


def test_without_a_calibration_the_depth_is_what_lerobot_tells(make, plain, data, tmp_path) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    shutil.copytree(data / "meta", tmp_path / "data" / "meta")
    (tmp_path / "data/meta/cameras.json").unlink()
    bare = LeRobotDatasetMetadata("local/bare", root=tmp_path / "data")
    rig = cameras_of(bare, Trainer(), None)
    for key, camera in cameras_of(LeRobotDatasetMetadata("local/whole", root=data), Trainer(), None).cameras.items():
        expected = camera.model_copy(update={"intrinsics": None, "world_from_camera": None, "pose_key": None})
        assert rig.cameras[key] == expected
    policy = make("sf_smolvla", pretrained_path=plain, dataset=bare)
    assert policy.spatial_forcing.adapter.cameras.cameras == rig.cameras


def test_cameras_follow_the_rename_map(meta) -> None:
    wrist = "observation.images.wrist"
    names = {wrist: "observation.images.camera1", f"{wrist}_depth": "observation.images.depth1"}
    rig = cameras_of(meta, read_trainer([*FLAGS, f"--rename_map={json.dumps(names)}"]), None)
    assert rig.cameras["observation.images.camera1"].depth_key == "observation.images.depth1"
    assert wrist not in rig.cameras


def test_moving_transforms_are_refused(meta) -> None:
    with pytest.raises(ConfigError, match="move pixels"):
        cameras_of(meta, read_trainer([*FLAGS, "--dataset.image_transforms.enable=true"]), None)


def test_a_dataset_without_calibration_is_refused_before_the_first_batch(make, plain, data, tmp_path) -> None:
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


def test_a_dataset_without_depth_is_refused_before_the_first_batch(make, plain, data, tmp_path) -> None:
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
    with pytest.raises(AdapterError, match="no pictures among its input features"):
        make(kind, dataset=blind, **shape)


def test_poses_that_are_not_on_this_machine_are_explained(meta, data, tmp_path) -> None:
    shutil.copytree(data / "meta", tmp_path / "meta")
    streamed = SimpleNamespace(
        root=tmp_path, features=meta.features, depth_keys=meta.depth_keys, camera_keys=meta.camera_keys
    )
    with pytest.raises(ConfigError, match="not on this machine"):
        cameras_of(streamed, Trainer(), None)


def test_fault_53_cameras_of_another_name_are_an_error_that_names_the_rename_map(make, plain, tmp_path, data) -> None:
    rig = json.loads((data / "meta/cameras.json").read_text())
    rig["cameras"] = {f"{key}_other": value for key, value in rig["cameras"].items()}
    (tmp_path / "cameras.json").write_text(json.dumps(rig))
    with pytest.raises(ConfigError, match=r"None of the policy's cameras.*\n.*--rename_map"):
        make("sf_smolvla", {"cameras": str(tmp_path / "cameras.json")}, pretrained_path=plain)


def test_the_trainer_is_read_as_lerobot_reads_it(tmp_path) -> None:
    assert read_trainer(["-q", "tests"]) == Trainer()
    assert read_trainer([*FLAGS, "--log_freq", "7"]).log_freq == 7
    assert read_trainer(FLAGS).resume is False
    stored = {"dataset": {"repo_id": "local/x"}, "log_freq": 9, "policy": {"type": "sf_smolvla"}, "resume": True}
    (tmp_path / "train_config.json").write_text(json.dumps(stored))
    for path in (tmp_path, tmp_path / "train_config.json"):
        assert (read_trainer([f"--config_path={path}"]).log_freq, read_trainer([f"--config_path={path}"]).resume) == (
            9,
            True,
        )
    (tmp_path / "run.yaml").write_text("dataset: {repo_id: local/x, depth_output_unit: m}\nlog_freq: 5\n")
    found = read_trainer([f"--config_path={tmp_path / 'run.yaml'}", "--log_freq=6"])
    assert (found.log_freq, found.depth_output_unit) == (6, "m")
    assert read_trainer(["--config_path=somebody/repository", "--resume=true"]) == Trainer(resume=True)


def test_fault_50_a_policy_from_a_checkpoint_is_in_eval_mode_and_says_so(make, plain) -> None:
    from sfkit_lerobot.testing import tiny_lerobot_batch

    from sfkit.errors import SfkitWarning

    policy = make("sf_smolvla", pretrained_path=plain)
    assert not policy.training
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.warns(SfkitWarning, match="in eval mode"):
        policy.forward(dict(batch))
    assert policy.spatial_forcing.steps == 0
