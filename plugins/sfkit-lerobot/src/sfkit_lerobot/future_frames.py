"""What the cameras see some steps later, for a teacher that is shown where the robot will be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sfkit.errors import ConfigError, ViewsError
from sfkit.views.cameras import CameraRig
from sfkit_lerobot.combined import locate, parts
from sfkit_lerobot.frame_keys import FRAME_KEY, later_keys
from sfkit_lerobot.normalization import Batch


def future_key(key: str, steps: int) -> str:
    """Where a batch holds the frame of a camera so many steps later."""
    return f"{key}_in_{steps}_steps"


def _pad_key(key: str, steps: int) -> str:
    return f"{future_key(key, steps)}_is_pad"


class FutureFrames(Dataset[dict[str, Any]]):
    """A LeRobot dataset whose samples hold future frames beside the present one.

    For each camera and depth map, ``"<key>_in_<n>_steps"`` is what it holds n steps later, and
    ``"<key>_in_<n>_steps_is_pad"`` says that the episode ends before. Policies read neither, and LeRobot's processors
    leave them as the camera saw them. Each of the steps reads one more frame.

    Args:
        dataset: A ``LeRobotDataset``, or a ``Subset``, ``ConcatDataset`` or ``MultiLeRobotDataset`` of some.
        steps: How far ahead, such as ``(8,)``.

    Raises:
        ConfigError: No step, one that does not lie ahead, or a dataset that is not LeRobot's.
    """

    def __init__(self, dataset: Any, steps: Sequence[int]) -> None:
        if not steps or min(steps) < 1:
            raise ConfigError(f"steps is {tuple(steps)}; future frames are 1 step ahead or more.", "Give (8,), or so.")
        parts(dataset)
        self.dataset = dataset
        self.steps = tuple(steps)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.dataset[index])
        # A later frame of the same recording, whether or not a Subset holds it too.
        source, at = locate(self.dataset, index)
        for steps in self.steps:
            later = source[min(at + steps, len(source) - 1)]
            ahead = int(later["frame_index"]) - int(sample["frame_index"])
            ended = int(later["episode_index"]) != int(sample["episode_index"]) or ahead != steps
            for key in source.meta.camera_keys:
                if key not in sample:
                    continue  # MultiLeRobotDataset leaves out what not all of its datasets have
                sample[future_key(key, steps)] = later[key]
                sample[_pad_key(key, steps)] = torch.tensor(ended)
        return sample


def at_future_frame(
    batch: Batch, cameras: Sequence[str], rig: CameraRig | None, steps: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The batch as if that future frame were the present one, and which samples have it.

    Args:
        batch: Of the policy's forward.
        cameras: Keys of the policy's images. A camera that is missing now stays so: the views keep their order.
        rig: Whose depth maps and poses move with the images. A depth map without a later one is left out.
        steps: How far ahead.

    Returns:
        The batch, and by camera ``(b,)`` bool.

    Raises:
        ViewsError: A camera has no future frame in the batch.
    """
    moved, there = dict(batch), {}
    for key in cameras:
        if key not in batch:
            continue
        if future_key(key, steps) not in batch:
            raise ViewsError(
                f"The batch holds no frame {steps} steps ahead: there is no {future_key(key, steps)!r}.",
                f"Train on sfkit_lerobot.FutureFrames(dataset, steps=({steps},)), or put that key into the batch.",
            )
        moved[key] = batch[future_key(key, steps)]
        padded = batch.get(_pad_key(key, steps))
        none = torch.zeros(len(moved[key]), dtype=torch.bool, device=moved[key].device)
        there[key] = ~(none if padded is None else padded.to(none.device).bool().reshape(-1))
    for camera in rig.cameras.values() if rig is not None else ():
        if camera.depth_key in moved:
            later = batch.get(future_key(camera.depth_key, steps))
            moved.pop(camera.depth_key)
            moved.update({} if later is None else {camera.depth_key: later})
    known = torch.stack(list(there.values())).any(0) if there else None
    if known is not None and isinstance(batch.get("index"), Tensor):
        index = batch["index"].reshape(-1)
        moved["index"] = torch.where(known.to(index.device), index + steps, index)
    if known is not None and FRAME_KEY in batch:
        moved[FRAME_KEY] = later_keys(batch[FRAME_KEY], steps, known.tolist())
    return moved, there
