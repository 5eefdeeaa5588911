"""Datasets made of others: which LeRobot datasets they hold, and where a sample of theirs comes from."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch.utils.data import ConcatDataset, Subset

from sfkit.errors import ConfigError

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset


def parts(dataset: Any) -> list[LeRobotDataset]:
    """The LeRobot datasets within a dataset, each once.

    Args:
        dataset: A ``LeRobotDataset``, or a ``Subset``, ``ConcatDataset``, ``MultiLeRobotDataset`` or
            :class:`sfkit_lerobot.FutureFrames` or ``FrameKeys`` of some, in any depth.

    Raises:
        ConfigError: It holds something else.
    """
    inner = _inner(dataset)
    if inner is not None:
        found = {id(part): part for one in inner for part in parts(one)}
        return list(found.values())
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    name = type(dataset).__name__
    if isinstance(dataset, StreamingLeRobotDataset):
        raise ConfigError(
            "A streamed dataset gives no depth that can be relied on: LeRobot applies image_transforms to its depth "
            "videos, and it has no table of poses.",
            "Open it as a LeRobotDataset.",
        )
    if not all(hasattr(dataset, attribute) for attribute in ("meta", "root", "depth_output_unit")):
        raise ConfigError(
            f"A {name} is no LeRobot dataset, so that its calibration, depth units and frames are unknown.",
            "Give a LeRobotDataset, a Subset, ConcatDataset, MultiLeRobotDataset or FutureFrames of some, or build the "
            "CameraRig yourself.",
        )
    return [dataset]


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The LeRobot dataset that a sample comes from, and its index there."""
    inner = _inner(dataset)
    if inner is None:
        return dataset, index
    if isinstance(dataset, Subset):
        return locate(dataset.dataset, dataset.indices[index])
    if not -len(dataset) <= index < len(dataset):
        raise IndexError(f"Index {index} is out of range for {len(dataset)} samples.")
    index %= len(dataset)
    ends = list(accumulate(map(len, inner)))
    at = bisect_right(ends, index)
    return locate(inner[at], index - (ends[at - 1] if at else 0))


def _inner(dataset: Any) -> list[Any] | None:
    """The datasets that a dataset is made of; None where it is one itself."""
    from lerobot.datasets.multi_dataset import MultiLeRobotDataset

    from sfkit_lerobot.frame_keys import FrameKeys
    from sfkit_lerobot.future_frames import FutureFrames

    if isinstance(dataset, Subset | FutureFrames | FrameKeys):
        return [dataset.dataset]
    if isinstance(dataset, ConcatDataset):
        return list(dataset.datasets)
    return list(dataset._datasets) if isinstance(dataset, MultiLeRobotDataset) else None
