from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfkit.errors import ConfigError, ViewsError
from sfkit.views.cameras import Camera, CameraRig, PoseTable, require_rig

K = ((50.0, 0.0, 15.5), (0.0, 50.0, 11.5), (0.0, 0.0, 1.0))


def rig(**changes: object) -> CameraRig:
    camera = Camera(**{"width": 32, "height": 24, "intrinsics": K, "depth_key": "d", **changes})  # type: ignore[arg-type]
    return CameraRig({"front": camera})


def test_a_rig_survives_its_file(tmp_path: Path) -> None:
    pose = tuple(tuple(row) for row in torch.eye(4).tolist())
    before = rig(world_from_camera=pose, depth_unit="mm", depth_range=(0.01, 10.0))
    before.save(tmp_path / "cameras.json")
    assert CameraRig.load(tmp_path / "cameras.json") == before


def test_a_bad_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    with pytest.raises(ConfigError, match="Cannot read"):
        CameraRig.load(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="not a calibration file"):
        CameraRig.load(path)
    camera = {"width": 32, "height": 24, "intrinsics": K, "depth_kye": "d"}
    path.write_text(json.dumps({"format": "sfkit.cameras/1", "cameras": {"front": camera}}))
    with pytest.raises(ConfigError, match="Did you mean 'depth_key'"):
        CameraRig.load(path)


@pytest.mark.parametrize("ends", [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0)])
def test_a_range_of_depth_goes_from_near_to_far(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="near end"):
        Camera.parse("camera", {"width": 32, "height": 24, "depth_range": ends})


def test_fault_54_depth_units_are_never_guessed() -> None:
    with pytest.raises(ConfigError, match="unit of d is not recorded"):
        rig().depth_scale("front")
    assert rig(depth_unit="mm").depth_scale("front") == 0.001
    assert rig(depth_unit="m").depth_scale("front") == 1.0


def test_intrinsics_belong_to_one_image_size() -> None:
    assert torch.equal(rig().intrinsics("front", (24, 32)), torch.tensor(K))
    with pytest.raises(ViewsError, match="12x16"):
        rig().intrinsics("front", (12, 16))


def test_poses_come_from_the_table_by_frame_index() -> None:
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([1.0, 2.0, 3.0])
    moving = CameraRig(rig(pose_key="p").cameras, {"p": PoseTable(torch.tensor([10, 20, 40]), poses)})
    found = moving.pose("front", torch.tensor([40, 10, 30]), 3)
    assert found is not None
    assert found[:2, 0, 3].tolist() == [3.0, 1.0]
    assert found[2].isnan().all(), "an unknown frame must not borrow another frame's pose"
    assert moving.pose("front", None, 3) is None
    assert rig().pose("front", torch.tensor([1]), 1) is None


@pytest.mark.parametrize(
    ("cameras", "problem"),
    [
        ({"a": 1}, "is a dict"),
        ("meta/cameras.json", "is a str"),
        (CameraRig({"a": 1}), "no Camera for 'a'"),  # type: ignore[dict-item]
        (CameraRig({}, {"pose": torch.eye(4)}), "no PoseTable for 'pose'"),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_rig_is_refused(cameras: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"cameras= .*{problem}.*expected a CameraRig"):
        require_rig(cameras)


def test_a_rig_is_accepted() -> None:
    assert require_rig(one := rig()) is one
