"""The recording shipped in sfkit-demo, and the recorder that made it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

EXAMPLE = Path(__file__).parents[2] / "examples" / "metaworld"
DATA = Path(__file__).parents[2] / "plugins" / "sfkit-demo" / "src" / "sfkit_demo" / "recording"
CORNER, WRIST = "observation.images.corner2", "observation.images.wrist"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None,
    reason="lerobot is not installed: nothing to read the recording with",
)


@pytest.fixture(scope="module")
def dataset() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imports of LeRobot's optional dependencies
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return LeRobotDataset("local/metaworld-mini", root=DATA, video_backend="pyav")


@pytest.fixture(scope="module")
def cameras() -> dict[str, Any]:
    content = json.loads((DATA / "meta" / "cameras.json").read_text())
    assert content["format"] == "sfkit.cameras/1"
    return dict(content["cameras"])


@pytest.fixture(scope="module")
def items(dataset: Any) -> list[dict[str, Any]]:
    """First frame of 24 episodes, eight of each task."""
    return [dataset[dataset.meta.episodes[number]["dataset_from_index"]] for number in range(24)]


def matrix_at(camera: dict[str, Any], size: int) -> NDArray[np.float64]:
    """Intrinsics (3, 3) at another resolution, with pixel centers at integers."""
    scale = size / camera["width"]
    to_size = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    return np.asarray(to_size @ camera["intrinsics"])


def pose_of(item: dict[str, Any], camera: dict[str, Any]) -> NDArray[np.float64]:
    """world_from_camera (4, 4)."""
    if "pose_key" in camera:
        return np.asarray(item[camera["pose_key"]].numpy().reshape(4, 4), dtype=np.float64)
    return np.asarray(camera["world_from_camera"])


def world_points(item: dict[str, Any], camera: dict[str, Any]) -> NDArray[np.float64]:
    """World points (h, w, 3), meters, of a depth map; NaN where it has no value."""
    depth = item[camera["depth_key"]][0].numpy() / 1000
    v, u = np.indices(depth.shape)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(matrix_at(camera, len(depth))).T
    pose = pose_of(item, camera)
    points = rays * np.where(depth > 0, depth, np.nan)[..., None] @ pose[:3, :3].T + pose[:3, 3]
    return np.asarray(points)


def project(
    points: NDArray[Any], item: dict[str, Any], camera: dict[str, Any], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (n, 2) at resolution `size`, and depths (n,), of world points (n, 3)."""
    local = np.column_stack([points, np.ones(len(points))]) @ np.linalg.inv(pose_of(item, camera)).T
    pixels = local[:, :3] @ matrix_at(camera, size).T
    return pixels[:, :2] / pixels[:, 2:], local[:, 2]


def test_is_small_and_complete(dataset: Any) -> None:
    files = [file for file in DATA.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {file.suffix for file in files} == {".json", ".parquet", ".mp4"}
    tasks = [dataset.meta.episodes[number]["tasks"][0] for number in range(dataset.num_episodes)]
    assert set(Counter(tasks).values()) == {36}
    assert all(len(set(tasks[first : first + 3])) == 3 for first in range(0, len(tasks), 3)), "tasks take turns"


def test_shapes_and_units(dataset: Any, items: list[dict[str, Any]]) -> None:
    assert dataset.fps == 40
    assert set(dataset.meta.depth_keys) == {f"{CORNER}_depth", f"{WRIST}_depth"}
    assert dataset.depth_output_unit == "mm"
    for key in dataset.meta.depth_keys:
        assert dataset.meta.features[key]["info"]["depth_unit"] == "mm"
    for item in items:
        for key in (CORNER, WRIST):
            assert item[key].shape == (3, 96, 96)
            assert item[f"{key}_depth"].shape == (1, 48, 48)
            depth = item[f"{key}_depth"].numpy()
            assert np.array_equal(depth, np.rint(depth))
            assert 10 < np.median(depth[depth > 0]) < 2000
        lengths = {"observation.state": 4, "action": 4, "label.object_position": 3, "label.goal_position": 3}
        for key, length in (lengths | {"camera_pose.wrist": 16}).items():
            assert item[key].shape == (length,)
        assert item["action"].abs().max() <= 1
        assert len(item["task"].split()) > 4


def test_labels_and_poses_reach_no_policy(dataset: Any) -> None:
    from lerobot.utils.feature_utils import dataset_to_policy_features

    offered = set(dataset_to_policy_features(dataset.meta.features))
    images = {CORNER, WRIST, f"{CORNER}_depth", f"{WRIST}_depth"}
    assert offered == images | {"observation.state", "action"}


def test_calibration(items: list[dict[str, Any]], cameras: dict[str, Any]) -> None:
    assert set(cameras) == {CORNER, WRIST}
    for key, camera in cameras.items():
        assert (camera["width"], camera["height"], camera["depth_key"]) == (96, 96, f"{key}_depth")
        assert camera["intrinsics"][0][2] == camera["intrinsics"][1][2] == 47.5
        for item in items:
            rotation = pose_of(item, camera)[:3, :3]
            assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
            assert np.isclose(np.linalg.det(rotation), 1)


def test_stored_depth_meets_the_simulators_ray_casts(dataset: Any, cameras: dict[str, Any]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rays = parquet.read_table(DATA / "meta" / "raycasts.parquet").to_pandas()
    some = {index: dataset[index] for index in sorted(set(rays["index"]))[::7]}

    def distances(camera: dict[str, Any]) -> NDArray[np.float64]:
        collected = []
        for index, item in some.items():
            rows = rays[(rays["index"] == index) & (rays["camera"] == camera["depth_key"][: -len("_depth")])]
            points = world_points(item, camera)[rows["v"], rows["u"]]
            collected.append(np.linalg.norm(points - rows[["x", "y", "z"]].to_numpy(), axis=1))
        return np.concatenate(collected)

    for camera in cameras.values():
        assert np.median(distances(camera)) < 0.001
        assert np.percentile(distances(camera), 90) < 0.002
        off = np.array(camera["intrinsics"])
        off[:2, 2] += 1
        assert np.percentile(distances(camera | {"intrinsics": off}), 90) > 0.002, "half a depth pixel shows"


def test_both_cameras_see_the_table_at_the_same_height(items: list[dict[str, Any]], cameras: dict[str, Any]) -> None:
    for item in items:
        for camera in cameras.values():
            points = world_points(item, camera).reshape(-1, 3)
            center = np.abs(points - [0, 0.6, 0]) < [0.4, 0.25, 0.01]
            on_table = points[center.all(axis=1)]
            assert len(on_table) > 200
            assert abs(np.median(on_table[:, 2])) < 0.002


def test_wrist_points_are_where_the_corner_camera_sees_them(
    items: list[dict[str, Any]], cameras: dict[str, Any]
) -> None:
    for item in items:
        points = world_points(item, cameras[WRIST]).reshape(-1, 3)
        pixels, depths = project(points, item, cameras[CORNER], 48)
        u, v = np.rint(pixels).astype(int).T
        inside = (u >= 0) & (u < 48) & (v >= 0) & (v < 48)
        seen = item[f"{CORNER}_depth"][0].numpy()[v[inside], u[inside]] / 1000
        assert inside.sum() > 300
        # A corner pixel covers two centimeters, and the gripper hides a part: hence the median.
        assert np.median(np.abs(seen - depths[inside])) < 0.015


def test_labels_point_at_the_right_colors(items: list[dict[str, Any]], cameras: dict[str, Any]) -> None:
    """Ties the RGB image to the calibration: the puck is red, the goals red, green and blue."""
    channel_of = {"red": 0, "green": 1, "blue": 2}
    hits = []
    for item in items:
        image = item[CORNER].numpy()
        goal = next(index for color, index in channel_of.items() if f"{color} goal" in item["task"])
        for label, channel in (("object", 0), ("goal", goal)):
            pixels, _ = project(item[f"label.{label}_position"].numpy()[None], item, cameras[CORNER], 96)
            u, v = np.rint(pixels[0]).astype(int)
            hits.append(image[channel, v, u] > 1.8 * np.delete(image[:, v, u], channel).max())
    assert np.mean(hits) > 0.85, "some are hidden by the arm"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    for package in ("metaworld", "mujoco", "typer"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: nothing to record with")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    module = importlib.import_module("record")
    try:
        module.choose_gl()
    except module.RecordingError as error:
        pytest.skip(str(error))
    return module


def test_recording_resumes_and_is_done_once(recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from rich.console import Console

    root, console = tmp_path / "recording", Console(quiet=True)
    options = recorder.Options(
        tasks=("reach-v3",), episodes=2, image_size=32, depth_size=16, max_steps=4, keep_failures=True
    )
    recorded: list[int] = []
    record_episode = recorder._record_episode

    def interrupted(scene: Any, staging: Any, number: int, options: Any) -> None:
        if number == 1 and len(recorded) == 1:
            recorded.append(-1)
            raise KeyboardInterrupt
        recorded.append(number)
        record_episode(scene, staging, number, options)

    monkeypatch.setattr(recorder, "_record_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(root, options, console)
    assert not root.exists()
    with pytest.raises(recorder.RecordingError, match="seed: recorded 0, asked 1"):
        recorder.record(root, replace(options, seed=1), console)
    assert recorder.record(root, options, console)
    assert recorded == [0, -1, 1]
    assert not recorder.record(root, options, console)
    assert [path.name for path in tmp_path.iterdir()] == ["recording"]

    check = importlib.import_module("recorder.check")
    (summary,) = check.check(root)
    assert (summary.episodes, summary.frames) == (2, 8)
    assert set(summary.agreement) == {CORNER, WRIST}
