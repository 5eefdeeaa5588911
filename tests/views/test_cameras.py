from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.views.cameras import Camera, CameraRig, PoseTable, is_rigid, require_rig

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


TURNED = ((0.0, -1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 2.0), (0.0, 0.0, 1.0, 3.0), (0.0, 0.0, 0.0, 1.0))


def parsed(**changes: object) -> Camera:
    return Camera.parse("camera 'front'", {"width": 32, "height": 24, "intrinsics": K, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({(0, 0): -50.0}, "focal lengths -50 and 50", id="fx"),
        pytest.param({(1, 1): 0.0}, "focal lengths 50 and 0", id="fy"),
        pytest.param({(0, 0): 1e308}, "focal lengths 1e.308", id="huge"),
        pytest.param({(1, 2): -1e9}, "center", id="center"),
        pytest.param({(2, 2): 2.0}, r"write K as .*0, 0, 1", id="bottom row"),
        pytest.param({(1, 0): 3.0}, r"write K as .*0, fy, cy", id="transposed"),
        pytest.param({(0, 0): math.nan}, "finite number", id="nan"),
    ],
)
def test_fault_79_a_matrix_that_no_lens_has_is_refused(changes: dict[tuple[int, int], float], says: str) -> None:
    matrix = [list(row) for row in K]
    for (row, column), value in changes.items():
        matrix[row][column] = value
    with pytest.raises(ConfigError, match=rf"camera 'front'(.|\n)*intrinsics(.|\n)*{says}"):
        parsed(intrinsics=matrix)
    with pytest.raises(ConfigError, match=f"Camera(.|\n)*{says}"):
        Camera(width=32, height=24, intrinsics=matrix)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 2**16 + 1, 10**400, "wide", None])
def test_an_image_has_a_plausible_size(size: object) -> None:
    for name in ("width", "height"):
        with pytest.raises(ConfigError, match=rf"camera 'front'(.|\n)*{name}"):
            parsed(**{name: size})


def moved(change: str) -> list[list[float]]:
    pose = torch.tensor(TURNED, dtype=torch.float64)
    if change == "scaled":
        pose[:3, :3] *= 1.05
    elif change == "mirrored":
        pose[0, :3] *= -1
    elif change == "sheared":
        pose[0, 0] += 0.1
    elif change == "zero":
        pose[:3, :3] = 0
    elif change == "transposed":
        pose = pose.T.contiguous()
    elif change == "far":
        pose[0, 3] = 1e308
    found: list[list[float]] = pose.tolist()
    return found


@pytest.mark.parametrize("change", ["scaled", "mirrored", "sheared", "zero", "transposed", "far"])
def test_fault_80_a_pose_that_is_not_rigid_is_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=r"camera 'front'(.|\n)*world_from_camera is .*give by rows a rotation"):
        parsed(world_from_camera=moved(change))


def test_a_pose_may_be_rounded() -> None:
    angle = torch.tensor(0.7, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0], pose[0, 1], pose[1, 0], pose[1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    assert parsed(world_from_camera=pose.mul(1000).round().div(1000).tolist()).world_from_camera is not None
    assert parsed(world_from_camera=pose.float().tolist()).world_from_camera is not None
    assert is_rigid(torch.tensor(TURNED))


@pytest.mark.parametrize("change", ["scaled", "mirrored", "far"])
def test_fault_80_each_pose_of_a_table_is_rigid(change: str) -> None:
    poses = torch.stack([torch.eye(4, dtype=torch.float64), torch.tensor(moved(change), dtype=torch.float64)])
    with pytest.raises(ConfigError, match="pose of frame 20 is"):
        PoseTable(torch.tensor([10, 20]), poses)


@pytest.mark.parametrize(
    ("index", "poses"),
    [([1], torch.eye(4)[None]), (torch.tensor([1.0]), torch.eye(4)[None]), (torch.tensor([1, 2]), torch.eye(4)[None])],
)
def test_a_table_has_a_pose_for_each_index(index: Any, poses: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="PoseTable"):
        PoseTable(index, poses)
    with pytest.raises(ConfigError, match="does not ascend"):
        PoseTable(torch.tensor([2, 2]), torch.eye(4).repeat(2, 1, 1))


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
