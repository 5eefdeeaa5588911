"""Undoing LeRobot's normalization of images: a teacher must see what the camera saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from sfkit.errors import ViewsError

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig

#: For each mode of LeRobot that maps an interval to [-1, 1]: the statistics at its ends.
_INTERVALS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}

_TOLERANCE = 1e-3

Stats: TypeAlias = Mapping[str, Sequence[float]]
#: What a policy's forward is given: tensors by key, and texts.
Batch: TypeAlias = Mapping[str, Any]


def visual_mode(config: PreTrainedConfig) -> str:
    """The policy's normalization of images, such as ``"IDENTITY"`` or ``"MEAN_STD"``."""
    mode = config.normalization_mapping.get("VISUAL", "IDENTITY")
    return str(getattr(mode, "value", mode))


def denormalized(picture: Tensor, mode: str, stats: Stats | None, key: str) -> Tensor:
    """The image as it was before LeRobot's preprocessor normalized it.

    Args:
        picture: ``(b, 3, h, w)`` normalized.
        mode: LeRobot's mode, not ``"IDENTITY"``.
        stats: The dataset's statistics of this camera, one value for each channel.
        key: Its batch key, for messages.

    Raises:
        ViewsError: The statistics are unknown, or lack what the mode needs.
    """
    if mode == "MEAN_STD":
        mean, std = _values(picture, mode, stats, key, ("mean", "std"))
        return picture * std + mean
    if mode in _INTERVALS:
        low, high = _values(picture, mode, stats, key, _INTERVALS[mode])
        return (picture + 1) / 2 * (high - low) + low
    raise ViewsError(f"The policy normalizes images by {mode}, which sfkit-lerobot does not know how to undo.")


def refuse_out_of_range(picture: Tensor, key: str, policy: str) -> None:
    """Refuse an image ``(b, 3, h, w)`` out of range before the policy clamps it or makes it 8 bits.

    Raises:
        ViewsError: It is not in [0, 1].
    """
    low, high = float(picture.min()), float(picture.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ViewsError(
            f"{key} ranges from {low:.3g} to {high:.3g}, expected [0, 1]; {policy} would change it without a word.",
            "Give float images in [0, 1]; check the preprocessor and its VISUAL normalization.",
        )


def _values(picture: Tensor, mode: str, stats: Stats | None, key: str, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two statistics ``(3, 1, 1)`` of a camera, for an image ``(b, 3, h, w)``."""
    missing = [name for name in names if name not in (stats or {})]
    if stats is None or missing:
        raise ViewsError(
            f"The policy normalizes images by {mode}, and the statistics of {key} ({', '.join(missing)}) are "
            "unknown, so the teacher would be shown normalized images.",
            'Pass adapter=("<name>", {"image_stats": sfkit_lerobot.image_stats(dataset)}) to SpatialForcing.wrap, or '
            'use normalization_mapping["VISUAL"] = IDENTITY.',
        )
    low, high = (torch.tensor(stats[name], device=picture.device).view(-1, 1, 1) for name in names)
    return low, high
