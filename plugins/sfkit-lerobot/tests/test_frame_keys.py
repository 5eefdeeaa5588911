"""Which frame a sample is: by dataset, episode and frame, through loader and preprocessor to the adapter."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sfkit_lerobot import FrameKeys, FutureFrames
from sfkit_lerobot.frame_keys import FRAME_KEY
from sfkit_lerobot.future_frames import at_future_frame
from torch.utils.data import ConcatDataset, DataLoader, Subset

from sfkit.errors import ConfigError
from sfkit.policies.base import ForwardCall

KEYS = ("observation.images.front", "observation.images.wrist")
LENGTH = 3


def record(root: Path, name: str, grays: list[int]) -> Any:
    """A dataset of episodes of three frames, each episode of its own gray."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    features = {**dict.fromkeys(KEYS, image), "observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create(name, fps=10, features=features, root=root, use_videos=False)
    for gray in grays:
        for step in range(LENGTH):
            pictures = {key: np.full((16, 16, 3), gray + step, np.uint8) for key in KEYS}
            zeros = np.zeros(4, np.float32)
            dataset.add_frame({**pictures, "observation.state": zeros, "action": zeros, "task": "wave"})
        dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset(name, root=root)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Dataset a; a that grew; a whose first episode was recorded anew; b."""
    root = tmp_path_factory.mktemp("datasets")
    return SimpleNamespace(
        a=record(root / "a", "local/a", [10, 20]),
        grown=record(root / "grown", "local/a", [10, 20, 30]),
        edited=record(root / "edited", "local/a", [90, 20]),
        b=record(root / "b", "local/b", [10, 20]),
    )


def test_a_sample_says_which_frame_it_is(data: SimpleNamespace) -> None:
    frames = FrameKeys(data.a)
    keys = frames.keys()
    assert [key[1:] for key in keys] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert all(key[0].startswith("local/a@") for key in keys)
    assert [frames[index][FRAME_KEY] for index in range(6)] == [":".join(map(str, key)) for key in keys]
    copy = pickle.loads(pickle.dumps(frames))
    assert copy[4][FRAME_KEY] == frames[4][FRAME_KEY]


def test_growth_keeps_keys_and_an_edit_changes_its_own(data: SimpleNamespace) -> None:
    keys, grown, edited = (FrameKeys(each).keys() for each in (data.a, data.grown, data.edited))
    assert grown[:6] == keys
    assert edited[3:] == keys[3:]
    assert not set(edited[:3]) & set(keys)


def test_mixed_and_chosen_episodes_keep_their_keys(data: SimpleNamespace) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    a, b = FrameKeys(data.a).keys(), FrameKeys(data.b).keys()
    mixed = FrameKeys(ConcatDataset([Subset(data.a, [5, 1]), FutureFrames(data.b, [1])]))
    assert mixed.keys() == [a[5], a[1], *b]
    assert len({*a, *b}) == 12
    assert [mixed[index][FRAME_KEY] for index in (0, 2)] == [":".join(map(str, key)) for key in (a[5], b[0])]
    chosen = LeRobotDataset("local/a", root=data.a.root, episodes=[1])
    assert FrameKeys(chosen).keys() == a[3:]
    assert FrameKeys(FrameKeys(data.a)).keys() == a
    with pytest.raises(ConfigError, match="no LeRobot dataset"):
        FrameKeys(torch.utils.data.TensorDataset(torch.zeros(3)))


def test_keys_pass_lerobots_processors_to_the_views(data: SimpleNamespace, build: Any) -> None:
    from sfkit_lerobot import SmolVLAAdapter
    from sfkit_lerobot.testing import tiny_pi0_processors

    policy = build("smolvla", cameras=KEYS, image_shape=(3, 16, 16))
    frames = FrameKeys(data.a)
    loader = DataLoader(frames, batch_size=3)
    preprocess, _ = tiny_pi0_processors(
        build("pi0", cameras=KEYS, image_shape=(3, 16, 16)), data.a.meta.stats, ["wave"]
    )
    batch = preprocess(list(loader)[1])
    views = SmolVLAAdapter(policy).views(ForwardCall({"batch": batch}, None))
    assert views.keys == tuple(frames.keys()[3:])
    del batch[FRAME_KEY]
    adapter = SmolVLAAdapter(policy)
    assert adapter.views(ForwardCall({"batch": batch}, None)).keys is None
    adapter.frames = frames
    assert adapter.views(ForwardCall({"batch": batch}, None)).keys == tuple(frames.keys()[3:])


def test_fault_88_the_key_of_a_future_frame_is_its_own(data: SimpleNamespace) -> None:
    frames = FrameKeys(FutureFrames(data.a, [2]))
    batch = next(iter(DataLoader(frames, batch_size=3)))
    moved, there = at_future_frame(batch, KEYS, None, 2)
    assert there[KEYS[0]].tolist() == [True, False, False]
    assert moved[FRAME_KEY] == [f"{frames.keys()[0][0]}:0:{frame}" for frame in (2, 1, 2)]
