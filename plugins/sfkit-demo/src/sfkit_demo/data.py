"""The dataset in memory, split by episodes, and its batches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from sfkit.errors import ConfigError, SfkitError
from sfkit.views.cameras import CameraRig

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

#: A batch of LeRobot: tensors, and lists of texts.
Batch: TypeAlias = dict[str, Any]

_REPO_ID = "local/demo"
_LABELS = ("label.object_position", "label.goal_position")
#: One split for all seeds, so that all runs are evaluated on the same frames.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Frames:
    """All ``n`` frames of a LeRobot dataset, decoded, in recorded order.

    Attributes:
        images: ``(n, 3, h, w)`` uint8 by batch key, in the policy's order.
        depth: ``(n, 1, h', w')`` float32 by batch key, in the unit of ``cameras``.
        state: ``(n, s)`` float32.
        action: ``(n, a)`` float32.
        labels: ``(n, 3)`` float32 meters, ``object`` and ``goal``: for probes only, not in batches.
        index: ``(n,)`` long, LeRobot's global frame index.
        episode: ``(n,)`` long.
        tasks: Task text of each frame.
        cameras: Calibration and poses.
    """

    images: dict[str, Tensor]
    depth: dict[str, Tensor]
    state: Tensor
    action: Tensor
    labels: dict[str, Tensor]
    index: Tensor
    episode: Tensor
    tasks: tuple[str, ...]
    cameras: CameraRig

    def __len__(self) -> int:
        return len(self.episode)

    def batch(self, rows: Tensor, chunk: int) -> Batch:
        """A batch as from LeRobot's loader, before the policy's preprocessor, without labels.

        Args:
            rows: ``(b,)`` long, indices of frames.
            chunk: Length of the action chunk; after the end of the episode the last action repeats, marked as padding.
        """
        steps = rows[:, None] + torch.arange(chunk)
        last = self._last_rows()[rows][:, None]
        batch: Batch = {key: value[rows].float() / 255 for key, value in self.images.items()}
        batch |= {key: value[rows] for key, value in self.depth.items()}
        return batch | {
            "observation.state": self.state[rows],
            "action": self.action[torch.minimum(steps, last)],
            "action_is_pad": steps > last,
            "index": self.index[rows],
            "episode_index": self.episode[rows],
            "task": [self.tasks[row] for row in rows.tolist()],
        }

    def _last_rows(self) -> Tensor:
        """``(n,)`` long: the last row of each row's episode; episodes are contiguous."""
        starts, counts = episode_bounds(self.episode)
        return (starts + counts - 1).repeat_interleave(counts)


@dataclass(frozen=True)
class Split:
    """Rows of the training part and of the held-out part; no episode is in both."""

    train: Tensor
    held_out: Tensor


def split_episodes(frames: Frames, held_out: float) -> Split:
    """Split by whole episodes, with the same share of each task.

    Args:
        frames: The dataset.
        held_out: Share of held-out episodes of each task; at least one is held out, and one is for training.

    Raises:
        ConfigError: A task has a single episode.
    """
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    by_task: dict[str, list[int]] = {}
    for task, episode in zip(frames.tasks, frames.episode.tolist(), strict=True):
        known = by_task.setdefault(task, [])
        if not known or known[-1] != episode:
            known.append(episode)
    kept_apart: list[int] = []
    for task in sorted(by_task):
        episodes = by_task[task]
        if len(episodes) < 2:
            raise ConfigError(f"Task {task!r} has one episode only; none can be held out.")
        count = min(max(1, round(held_out * len(episodes))), len(episodes) - 1)
        order = torch.randperm(len(episodes), generator=generator).tolist()
        kept_apart += [episodes[i] for i in order[:count]]
    apart = torch.isin(frames.episode, torch.tensor(kept_apart))
    rows = torch.arange(len(frames))
    return Split(rows[~apart], rows[apart])


def thinned(frames: Frames, rows: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th frame of each episode among rows ``(n,)``."""
    starts, counts = episode_bounds(frames.episode)
    first = starts.repeat_interleave(counts)
    return rows[(rows - first[rows]) % stride == 0]


def episode_bounds(episode: Tensor) -> tuple[Tensor, Tensor]:
    """First row and number of rows of each episode, from the episode ``(n,)`` of each row."""
    changes = torch.nonzero(episode[1:] != episode[:-1]).flatten() + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.long), changes])
    ends = torch.cat([changes, torch.tensor([len(episode)])])
    return starts, ends - starts


def load_frames(root: Path) -> Frames:
    """Read a LeRobot dataset with LeRobot's loader, each episode's video in one pass.

    Raises:
        ConfigError: The dataset does not exist, is damaged, or lacks images, depth, calibration or labels.
    """
    if not (root / "meta" / "info.json").is_file():
        raise ConfigError(f"There is no LeRobot dataset at {root}.", "Name one with --data.")
    try:
        return _read(root)
    except SfkitError:
        raise
    except Exception as error:  # of LeRobot, of Arrow, of the video decoder: whatever a damaged file leads to
        raise ConfigError(
            f"{root} cannot be read: {type(error).__name__}: {error}",
            "Copy the dataset again, or record it anew.",
        ) from error


def _read(root: Path) -> Frames:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
        from sfkit_lerobot.dataset import camera_rig

        dataset = LeRobotDataset(_REPO_ID, root=root, video_backend="pyav")
        cameras = camera_rig(dataset)
        _require_columns(dataset, cameras)
        episodes = [_read_episode(dataset, cameras, episode) for episode in range(dataset.num_episodes)]
    joined = {key: torch.cat([episode[key] for episode in episodes]) for key in episodes[0]}
    texts = [str(text) for text in dataset.meta.tasks.index]
    depth_keys = [camera.depth_key for camera in cameras.cameras.values() if camera.depth_key]
    return Frames(
        images={key: joined[key] for key in cameras.cameras},
        depth={key: joined[key] for key in depth_keys},
        state=joined["observation.state"],
        action=joined["action"],
        labels={key.split(".")[1].split("_")[0]: joined[key] for key in _LABELS},
        index=joined["index"],
        episode=joined["episode_index"],
        tasks=tuple(texts[i] for i in joined["task_index"].tolist()),
        cameras=cameras,
    )


def _require_columns(dataset: LeRobotDataset, cameras: CameraRig) -> None:
    depth = [camera.depth_key for camera in cameras.cameras.values()]
    wanted = [*cameras.cameras, *depth, *_LABELS, "observation.state", "action"]
    missing = [str(key) for key in wanted if key not in dataset.features]
    if missing:
        raise ConfigError(
            f"{dataset.root} lacks {', '.join(missing)}.",
            "Record with examples/metaworld/record.py, which writes every column that the demo measures.",
        )


def _read_episode(dataset: LeRobotDataset, cameras: CameraRig, episode: int) -> dict[str, Tensor]:
    """All columns of one episode: ``(t, ...)`` tensors."""
    from lerobot.datasets.video_utils import decode_video_frames

    about = dataset.meta.episodes[episode]
    rows = dataset.hf_dataset[about["dataset_from_index"] : about["dataset_to_index"]]
    columns = {key: torch.stack(list(value)) for key, value in rows.items()}
    for key in cameras.cameras:
        if key in columns:  # stored as images
            columns[key] = (columns[key] * 255).round().to(torch.uint8)
            continue
        start = about[f"videos/{key}/from_timestamp"]
        times = [start + time for time in columns["timestamp"].tolist()]
        path = dataset.root / dataset.meta.get_video_file_path(episode, key)
        columns[key] = decode_video_frames(path, times, 0.5 / dataset.fps, "pyav", return_uint8=True)
    return columns
