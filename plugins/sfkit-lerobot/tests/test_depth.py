"""Depth maps as sensors and datasets give them: whole numbers, other sizes, and ranges with clipped ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sfkit_lerobot import camera_rig
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit.errors import ViewsError

FRONT = CAMERAS[0]
DEPTH = f"{FRONT}_depth"


@pytest.fixture
def depth_of(adapter_of, views_of, build):
    """``depth_of(value, **camera)``: depth ``(b, h, w)`` in meters that the teacher gets for a batch's map."""

    def depth_of(value, **camera):
        policy = build("smolvla")
        adapter = adapter_of(policy)
        rig = adapter.cameras
        rig.cameras[FRONT] = rig.cameras[FRONT].model_copy(update=camera)
        batch = {**tiny_lerobot_batch(policy, batch_size=len(value), geometry=True), DEPTH: value}
        return views_of(adapter, batch).depth[:, 0]

    return depth_of


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 1, 64, 64), (2, 3, 1, 64, 64)])
def test_depth_may_be_whole_millimeters(dtype, shape, depth_of) -> None:
    millimeters = torch.randint(1, 255, shape).to(dtype)
    expected = millimeters.reshape(2, -1, 64, 64)[:, -1].float() * 0.001
    found = depth_of(millimeters, depth_unit="mm")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_whole_millimeters_beyond_a_signed_range(depth_of) -> None:
    far = torch.full((1, 64, 64), 60_000, dtype=torch.uint16)
    torch.testing.assert_close(depth_of(far, depth_unit="mm"), torch.full((1, 64, 64), 60.0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 65), (120, 121)])
def test_fault_60_depth_of_the_same_shape_may_have_any_size(height, width, depth_of) -> None:
    assert bool((depth_of(torch.full((1, 1, height, width), 0.5)) == 0.5).all())


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (64, 66), (66, 64)])
def test_fault_60_depth_of_another_aspect_ratio_is_refused(height, width, depth_of) -> None:
    with pytest.raises(ViewsError, match=rf"front_depth is {height}x{width}.*64x64: another aspect ratio"):
        depth_of(torch.full((1, 1, height, width), 0.5))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A LeRobot dataset whose depth is a video, and the millimeters that were recorded in each of its frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("datasets") / "video"
    image = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    depth = {**image, "shape": (64, 64, 1), "info": {"is_depth_map": True}}
    state = {"dtype": "float32", "shape": (4,), "names": None}
    features = {FRONT: image, DEPTH: depth, "observation.state": state, "action": state}
    dataset = LeRobotDataset.create("local/video", fps=10, features=features, root=root, use_videos=True)
    random = np.random.default_rng(0)
    millimeters = random.integers(50, 9_900, (64, 64, 1)).astype(np.uint16)
    millimeters[:, :20] = 0  # the sensor knows nothing
    millimeters[:, 50:] = 30_000
    millimeters[30, 25:30, 0] = 5, 10, 11, 9_990, 10_000
    for _ in range(3):
        pixels = random.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        none = np.zeros(4, np.float32)
        dataset.add_frame({FRONT: pixels, DEPTH: millimeters, "observation.state": none, "action": none, "task": "x"})
    dataset.save_episode()
    dataset.finalize()
    return root, millimeters[..., 0]


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_fault_61_the_clipped_ends_of_a_video_are_unknown(unit, video, build, adapter_of, views_of) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, recorded = video
    dataset = LeRobotDataset("local/video", root=root, video_backend="pyav", depth_output_unit=unit)
    policy = build("smolvla")
    adapter = adapter_of(policy)
    adapter.cameras = camera_rig(dataset)
    assert adapter.cameras.cameras[FRONT].depth_range == (0.01, 10.0)
    map_ = dataset[1][DEPTH].unsqueeze(0)
    depth = views_of(adapter, {**tiny_lerobot_batch(policy, batch_size=1), DEPTH: map_}).depth[0, 0]
    truth = torch.from_numpy(recorded.astype(np.float32)) / 1000
    inside = (truth > 0.0105) & (truth < 9.995)
    assert 0.3 < inside.float().mean() < 0.6
    assert bool((depth[~inside] == 0).all())
    assert (depth - truth)[inside].abs().max() < 0.003


def test_fault_61_a_range_narrows_what_the_dataset_records(video, tmp_path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/video", root=video[0], video_backend="pyav")
    rig = camera_rig(dataset)
    for given, expected in (((0.3, 20.0), (0.3, 10.0)), ((0.0, 4.0), (0.01, 4.0))):
        rig.cameras[FRONT] = rig.cameras[FRONT].model_copy(update={"depth_range": given})
        rig.save(tmp_path / "cameras.json")
        assert camera_rig(dataset, tmp_path / "cameras.json").cameras[FRONT].depth_range == expected
    dataset.meta.features[DEPTH]["info"]["video.depth_max"] = 100.0  # LeRobot's millimeters end at 16 bits
    assert camera_rig(dataset).cameras[FRONT].depth_range == (0.01, 65.535)


def test_a_camera_without_a_range_keeps_all_depth(depth_of) -> None:
    depth = torch.tensor([0.0, 0.01, 0.5, 10.0]).repeat_interleave(1024).reshape(1, 64, 64)
    assert torch.equal(depth_of(depth), depth)
    expected = torch.where((depth > 0.1) & (depth < 9), depth, 0.0)
    assert torch.equal(depth_of(depth, depth_range=(0.01, 10.0)), expected)
