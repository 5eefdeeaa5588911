from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sfkit_demo.data import Frames, Split, episode_bounds, load_frames, split_episodes, thinned
from sfkit_demo.model import build_policy
from sfkit_demo.settings import Settings

from sfkit.errors import ConfigError


def test_no_episode_is_on_both_sides(frames: Frames, split: Split) -> None:
    train, held_out = (set(frames.episode[rows].tolist()) for rows in (split.train, split.held_out))
    assert not train & held_out
    assert train | held_out == set(frames.episode.tolist())
    assert len(split.train) + len(split.held_out) == len(frames)


def test_every_task_is_on_both_sides_in_the_same_share(frames: Frames, split: Split) -> None:
    for task in set(frames.tasks):
        episodes = [
            {int(frames.episode[row]) for row in rows.tolist() if frames.tasks[row] == task}
            for rows in (split.train, split.held_out)
        ]
        assert len(episodes[0]) == 2 * len(episodes[1])


def test_the_split_is_the_same_for_everybody(frames: Frames, split: Split) -> None:
    torch.manual_seed(99)
    again = split_episodes(frames, 1 / 3)
    assert torch.equal(again.train, split.train)


def test_a_task_with_one_episode_cannot_be_split(frames: Frames) -> None:
    one = replace(
        frames, tasks=("alone",) * 20 + ("rest",) * (len(frames) - 20), episode=torch.arange(len(frames)) // 20
    )
    with pytest.raises(ConfigError, match="'alone' has one episode"):
        split_episodes(one, 0.3)


def test_what_was_read_is_what_lerobot_gives(frames: Frames, data: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/check", root=data, video_backend="pyav")
    for row in (0, 40, len(frames) - 1):
        item = dataset[row]
        for key, images in frames.images.items():
            assert torch.allclose(images[row] / 255, item[key], atol=1e-6)
        for key, depth in frames.depth.items():
            assert torch.equal(depth[row], item[key])
        assert torch.equal(frames.labels["object"][row], item["label.object_position"])
        assert frames.tasks[row] == item["task"]
        assert int(frames.index[row]) == row


def test_chunks_stop_at_the_end_of_an_episode(frames: Frames) -> None:
    starts, counts = episode_bounds(frames.episode)
    last = int(starts[1] + counts[1]) - 1
    batch = frames.batch(torch.tensor([last - 2, int(starts[0])]), chunk=8)
    assert batch["action_is_pad"].tolist() == [[False] * 3 + [True] * 5, [False] * 8]
    assert torch.equal(batch["action"][0, 2], frames.action[last])
    assert torch.equal(batch["action"][0, 7], frames.action[last])
    assert torch.equal(batch["action"][1], frames.action[:8])


def test_thinning_keeps_the_first_frame_of_each_episode(frames: Frames) -> None:
    starts, _ = episode_bounds(frames.episode)
    kept = thinned(frames, torch.arange(len(frames)), 5)
    assert set(starts.tolist()) <= set(kept.tolist())
    assert len(frames) / 5 <= len(kept) < len(frames) / 4


def test_neither_labels_nor_geometry_reach_the_policy(
    frames: Frames, split: Split, settings: Settings, tmp_path: Path
) -> None:
    policy, preprocess = build_policy(frames, split.train, settings, tmp_path)
    rows = split.train[::300][:4]
    batch = preprocess(frames.batch(rows, settings.chunk))
    assert not [key for key in batch if "label" in key or "pose" in key]
    inputs = set(policy.config.input_features)  # type: ignore[union-attr, arg-type]
    assert inputs == {*frames.images, "observation.state"}
    # And what stays in the batch for the teacher does not change what the policy computes.
    blind = {**batch, **{key: torch.zeros_like(batch[key]) for key in frames.depth}}
    policy.eval()
    losses = []
    for seen in (batch, blind):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(float(policy(seen)[0]))
    assert losses[0] == losses[1]
    assert torch.equal(batch["observation.images.wrist_depth"], frames.depth["observation.images.wrist_depth"][rows])


def test_statistics_come_from_the_training_part(
    frames: Frames, split: Split, settings: Settings, tmp_path: Path
) -> None:
    _, preprocess = build_policy(frames, split.train, settings, tmp_path)
    batch = preprocess(frames.batch(split.train, 1))
    state = batch["observation.state"]
    assert torch.allclose(state.mean(0), torch.zeros(state.shape[1]), atol=1e-4)
    assert torch.allclose(state.std(0)[state.std(0) > 0.5], torch.ones(1), atol=1e-3)


def test_a_folder_without_a_dataset_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no LeRobot dataset"):
        load_frames(tmp_path)
