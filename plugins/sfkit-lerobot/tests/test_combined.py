"""Cameras and later frames of datasets that are made of others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sfkit_lerobot import FutureFrames, camera_rig, image_stats
from sfkit_lerobot.combined import locate
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from sfkit.errors import ConfigError
from sfkit.views.cameras import Camera, CameraRig

KEY, DEPTH, POSE = "observation.images.front", "observation.images.front_depth", "camera_pose.front"
LENGTH = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of two datasets, ``local/a`` and ``local/b``: two episodes of four frames, each frame of its own gray."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    base = tmp_path_factory.mktemp("datasets")
    image = {"dtype": "image", "shape": (12, 16, 3), "names": ["height", "width", "channels"]}
    depth = {**image, "shape": (12, 16, 1), "info": {"is_depth_map": True}}
    state = {"dtype": "float32", "shape": (4,), "names": None}
    pose = {"dtype": "float32", "shape": (16,), "names": None}
    for number, name in enumerate(("local/a", "local/b")):
        features = {KEY: image, DEPTH: depth, POSE: pose, "observation.state": state, "action": state}
        dataset = LeRobotDataset.create(name, fps=10, features=features, root=base / name, use_videos=False)
        for episode in range(2):
            for step in range(LENGTH):
                gray = 100 * number + 10 * episode + step
                dataset.add_frame(
                    {
                        KEY: np.full((12, 16, 3), gray, np.uint8),
                        DEPTH: np.full((12, 16, 1), 500 + gray, np.uint16),
                        POSE: np.eye(4, dtype=np.float32).reshape(16),
                        "observation.state": np.zeros(4, np.float32),
                        "action": np.zeros(4, np.float32),
                        "task": "x",
                    }
                )
            dataset.save_episode()
        dataset.finalize()
    return base


@pytest.fixture
def opened(base):
    """``opened(name, **arguments)``: a dataset of that folder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return lambda name, **arguments: LeRobotDataset(f"local/{name}", root=base / "local" / name, **arguments)


@pytest.fixture
def combined(opened, base):
    """``combined(form)``: both datasets, put together in some way."""
    from lerobot.datasets.multi_dataset import MultiLeRobotDataset

    def combined(form: str) -> Dataset[Any]:
        if form == "multi":
            return MultiLeRobotDataset(["local/a", "local/b"], root=base)
        a, b = opened("a"), opened("b")
        if form == "subsets":
            return ConcatDataset([Subset(a, range(8)), Subset(b, range(8))])
        return Subset(ConcatDataset([a, b]), range(16)) if form == "nested" else ConcatDataset([a, b])

    return combined


FORMS = ("multi", "concat", "subsets", "nested")


@pytest.mark.parametrize("form", FORMS)
def test_datasets_with_the_same_cameras_share_a_rig(form, combined, opened) -> None:
    alone = camera_rig(opened("a"))
    assert camera_rig(combined(form)) == camera_rig(FutureFrames(combined(form), (1,))) == alone
    assert alone.cameras[KEY].depth_unit == "mm"


def test_a_subset_has_the_rig_of_its_dataset(opened, tmp_path) -> None:
    rig = CameraRig({KEY: Camera(width=16, height=12, pose_key=POSE)})
    rig.save(tmp_path / "cameras.json")
    dataset = opened("a", depth_output_unit="m")
    found = camera_rig(Subset(dataset, [6, 1]), tmp_path / "cameras.json")
    assert found.poses[POSE].index.tolist() == list(range(8))
    again = camera_rig(ConcatDataset([Subset(dataset, [0]), Subset(dataset, [7])]), tmp_path / "cameras.json")
    assert torch.equal(again.poses[POSE].poses, found.poses[POSE].poses)


def test_datasets_in_different_units_are_refused(opened) -> None:
    with pytest.raises(ConfigError, match=rf"differ in depth_unit of {KEY}"):
        camera_rig(ConcatDataset([opened("a"), opened("b", depth_output_unit="m")]))


def test_datasets_with_different_calibration_are_refused(opened, base) -> None:
    path = base / "local" / "b" / "meta" / "cameras.json"
    k = ((16, 0, 7.5), (0, 16, 5.5), (0, 0, 1))
    CameraRig({KEY: Camera(width=16, height=12, intrinsics=k, depth_key=DEPTH)}).save(path)
    try:
        with pytest.raises(ConfigError, match=rf"differ in intrinsics of {KEY}.*does not say which"):
            camera_rig(ConcatDataset([opened("a"), opened("b")]))
        assert camera_rig(ConcatDataset([opened("a"), opened("b")]), path).cameras[KEY].intrinsics == k
    finally:
        path.unlink()


def test_moving_cameras_of_several_datasets_are_refused(opened, tmp_path) -> None:
    CameraRig({KEY: Camera(width=16, height=12, pose_key=POSE)}).save(tmp_path / "cameras.json")
    with pytest.raises(ConfigError, match=r"move \(camera_pose\.front\).*counts its frames from 0"):
        camera_rig(ConcatDataset([opened("a"), opened("b")]), tmp_path / "cameras.json")


@pytest.mark.parametrize("form", FORMS)
def test_later_frames_are_those_of_the_same_episode(form, combined) -> None:
    dataset = combined(form)
    ahead = FutureFrames(dataset, steps=(2,))
    samples = [ahead[index] for index in range(len(ahead))]
    for index, sample in enumerate(samples):
        ended = bool(sample[f"{KEY}_in_2_steps_is_pad"])
        assert ended is (index % LENGTH >= LENGTH - 2)
        if not ended:
            for key in (KEY, DEPTH):
                assert torch.equal(sample[f"{key}_in_2_steps"], samples[index + 2][key])
    assert default_collate(samples)[f"{KEY}_in_2_steps"].shape == (16, 3, 12, 16)


def test_later_frames_of_a_subset_need_not_be_in_it(opened) -> None:
    dataset = opened("a")
    ahead = FutureFrames(Subset(dataset, [5, 0, 3]), steps=(1,))
    assert [bool(ahead[index][f"{KEY}_in_1_steps_is_pad"]) for index in range(3)] == [False, False, True]
    assert torch.equal(ahead[0][f"{KEY}_in_1_steps"], dataset[6][KEY])
    assert torch.equal(ahead[1][f"{KEY}_in_1_steps"], dataset[1][KEY])


def test_a_sample_is_located_from_the_end_too(combined) -> None:
    dataset = combined("concat")
    assert locate(dataset, -1) == (dataset.datasets[1], 7)
    assert locate(dataset, 8) == (dataset.datasets[1], 0)
    for outside in (16, -17):
        with pytest.raises(IndexError):
            locate(dataset, outside)


@pytest.mark.parametrize("dataset", [TensorDataset(torch.zeros(2)), SimpleNamespace(), [1]])
def test_what_is_no_lerobot_dataset_is_refused_in_words(dataset) -> None:
    for use in (camera_rig, image_stats, lambda one: FutureFrames(one, (1,))):
        with pytest.raises(ConfigError, match="is no LeRobot dataset"):
            use(dataset)
    with pytest.raises(ConfigError, match="is no LeRobot dataset"):
        camera_rig(ConcatDataset([TensorDataset(torch.zeros(2))]))


def test_a_streamed_dataset_is_refused_in_words(base) -> None:
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    dataset = StreamingLeRobotDataset("local/a", root=base / "local" / "a")
    for use in (camera_rig, lambda one: FutureFrames(one, (1,))):
        with pytest.raises(ConfigError, match="streamed dataset"):
            use(dataset)


def test_statistics_are_those_of_one_dataset(opened) -> None:
    dataset = opened("a")
    assert image_stats(Subset(dataset, [0])) == image_stats(dataset)
    with pytest.raises(ConfigError, match="several statistics"):
        image_stats(ConcatDataset([dataset, opened("b")]))
