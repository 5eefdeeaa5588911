"""Camera calibration beside a dataset: it must reach the teacher without passing the policy's normalizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from sfkit.config import Options
from sfkit.errors import ConfigError, ViewsError
from sfkit.utils.places import read_json
from sfkit.views.types import FLOATS, expect

_FORMAT = "sfkit.cameras/1"
_METERS = {"m": 1.0, "mm": 0.001}
#: Meters by which rounding to whole millimeters moves an end of the recorded range, and a little more for float32.
_ROUNDING = 0.00051

#: No image is as wide in pixels, and no camera as far away in meters or in focal lengths of pixels.
_WIDEST, _FARTHEST, _SHORTEST = 2**16, 1e6, 0.01
#: By how much rows of a rotation may miss length 1 and right angles: what is rounded to three decimals passes.
_CROOKED = 0.005

Row3 = tuple[float, float, float]
Row4 = tuple[float, float, float, float]


class Camera(Options):
    """Calibration of one camera. OpenCV axes; integer pixel coordinates are pixel centers."""

    width: int = Field(ge=1, le=_WIDEST, description="Width of the dataset's image in pixels.")
    height: int = Field(ge=1, le=_WIDEST, description="Height of the dataset's image in pixels.")
    intrinsics: tuple[Row3, Row3, Row3] | None = Field(default=None, description="3x3 matrix K in pixels, if known.")
    depth_key: str | None = Field(default=None, description="Batch key of the depth map (same field of view).")
    depth_unit: Literal["m", "mm"] | None = Field(default=None, description="Unit of the depth map in the batch.")
    depth_range: tuple[float, float] | None = Field(
        default=None, description="Ends of a clipped range in meters: depth at or beyond an end is unknown."
    )
    world_from_camera: tuple[Row4, Row4, Row4, Row4] | None = Field(default=None, description="Fixed 4x4 pose, meters.")
    pose_key: str | None = Field(default=None, description="Dataset column with 4x4 poses of a camera that moves.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        near, far = self.depth_range or (0.0, 1.0)
        if not 0 <= near < far <= _FARTHEST:
            raise ValueError(f"depth_range is {near:g} to {far:g}; the near end is at least 0, and below the far end")
        (fx, skew, cx), (below, fy, cy), last = self.intrinsics or ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        if (below, *last) != (0, 0, 0, 1):
            raise ValueError(f"intrinsics are {self.intrinsics}; write K as ((fx, skew, cx), (0, fy, cy), (0, 0, 1))")
        if not _SHORTEST <= min(fx, fy) <= max(fx, fy, abs(skew), abs(cx), abs(cy)) <= _FARTHEST:
            raise ValueError(
                f"intrinsics have the focal lengths {fx:g} and {fy:g}, skew {skew:g} and center ({cx:g}, {cy:g}); give "
                f"positive focal lengths, and nothing beyond {_FARTHEST:g}, in pixels of this width and height"
            )
        pose = self.world_from_camera
        if pose is not None and not is_rigid(torch.tensor(pose, dtype=torch.float64)):
            raise ValueError(f"world_from_camera is {pose}; {_POSE}")
        return self


_POSE = "give by rows a rotation (no scale, determinant 1), a translation in meters, and 0 0 0 1; axes are OpenCV's"


def is_rigid(poses: Tensor) -> Tensor:
    """``(...)`` bool: which of ``(..., 4, 4)`` are a rotation and a translation within 1000 km."""
    poses = poses.double()
    rotation, unit = poses[..., :3, :3], torch.eye(4).to(poses)
    crooked = (rotation @ rotation.mT - unit[:3, :3]).abs().amax((-2, -1))
    sound: Tensor = (crooked < _CROOKED) & (poses[..., :3, 3].abs().amax(-1) <= _FARTHEST)
    sound &= (torch.linalg.det(rotation) > 0) & (poses[..., 3, :] == unit[3]).all(-1)
    return sound


@dataclass(frozen=True)
class PoseTable:
    """Poses of a moving camera, by the dataset's global frame index.

    Attributes:
        index: ``(n,)`` long, ascending.
        poses: ``(n, 4, 4)`` float32 ``world_from_camera``, meters.
    """

    index: Tensor
    poses: Tensor
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        expect("PoseTable.index", self.index, ("n",), (torch.long,))
        expect("PoseTable.poses", self.poses, (len(self.index), 4, 4), FLOATS)
        if bool((self.index.diff() <= 0).any()):
            raise ConfigError("PoseTable.index does not ascend.", "Sort frames and poses by it, each frame once.")
        wrong = ~is_rigid(self.poses)
        if bool(wrong.any()):
            frame, pose = int(self.index[wrong][0]), self.poses[wrong][0].tolist()
            raise ConfigError(f"The pose of frame {frame} is {pose}, no rigid transform.", f"Correct it: {_POSE}.")

    def __call__(self, index: Tensor) -> Tensor:
        """``(b, 4, 4)`` poses of frames ``(b,)``; NaN for a frame that is not in the table (later masked)."""
        if index.device not in self._copies:
            # Once for each device, and not at every step: there is a pose for each frame of the dataset.
            self._copies[index.device] = (self.index.to(index.device), self.poses.to(index.device))
        known, poses = self._copies[index.device]
        at = torch.searchsorted(known, index.long()).clamp(max=len(known) - 1)
        return torch.where((known[at] == index)[:, None, None], poses[at], torch.nan)

    def __reduce__(self) -> tuple[type[PoseTable], tuple[Tensor, Tensor]]:
        """Copied and pickled without what lies on devices."""
        return type(self), (self.index, self.poses)


@dataclass(frozen=True)
class CameraRig:
    """All cameras of a dataset, by the batch key of their image.

    Attributes:
        cameras: Calibration by image key.
        poses: Pose tables by ``pose_key``.
    """

    cameras: Mapping[str, Camera]
    poses: Mapping[str, PoseTable] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> CameraRig:
        """Read a ``cameras.json``.

        Raises:
            ConfigError: The file is missing, is not JSON, or is not of this format.
        """
        try:
            data = read_json(Path(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read camera calibration from {path}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ConfigError(f"{path} is not a calibration file.", f'Its "format" must be "{_FORMAT}".')
        if not isinstance(data.get("cameras"), dict):
            raise ConfigError(f"{path} has no cameras.", 'Write "cameras": {"<image key>": {"width": ..., ...}}.')
        cameras = {key: Camera.parse(f"camera {key!r} of {path}", value) for key, value in data["cameras"].items()}
        return cls(cameras)

    def save(self, path: str | Path) -> None:
        """Write ``cameras.json`` (calibration only: pose tables belong to the dataset's columns)."""
        cameras = {key: camera.model_dump(mode="json", exclude_none=True) for key, camera in self.cameras.items()}
        Path(path).write_text(json.dumps({"format": _FORMAT, "cameras": cameras}, indent=2) + "\n")

    def intrinsics(self, key: str, size: tuple[int, int]) -> Tensor:
        """``(3, 3)`` float32 K of a camera; NaN where it is unknown.

        Args:
            key: Batch key of its image.
            size: Height and width of the image in the batch, which must be the calibrated ones.

        Raises:
            ViewsError: The image has another size than the calibration.
        """
        camera = self.cameras[key]
        if size != (camera.height, camera.width):
            raise ViewsError(
                f"{key} arrives as {size[0]}x{size[1]}, its calibration is for {camera.height}x{camera.width}.",
                "Calibrate for the images as they are in the dataset, before any resize.",
            )
        return torch.full((3, 3), torch.nan) if camera.intrinsics is None else torch.tensor(camera.intrinsics)

    def depth_scale(self, key: str) -> float:
        """Meters for each unit of a camera's depth map.

        Raises:
            ConfigError: The unit is not recorded.
        """
        unit = self.cameras[key].depth_unit
        if unit is None:
            raise ConfigError(
                f"The unit of {self.cameras[key].depth_key} is not recorded.",
                'Set the camera\'s depth_unit to "m" or "mm" (for LeRobot, CameraRig comes with it from the dataset).',
            )
        return _METERS[unit]

    def known_depth(self, key: str, depth: Tensor) -> Tensor:
        """``(b, h, w)`` meters, 0 where they are an end of the recorded range: the video was clipped there.

        Args:
            key: Batch key of the camera's image.
            depth: ``(b, h, w)`` meters.
        """
        ends = self.cameras[key].depth_range
        if ends is None:
            return depth
        return torch.where((depth > ends[0] + _ROUNDING) & (depth < ends[1] - _ROUNDING), depth, 0.0)

    def pose(self, key: str, index: Tensor | None, batch: int) -> Tensor | None:
        """``(b, 4, 4)`` poses of a camera, or None where they are unknown.

        Args:
            key: Batch key of its image.
            index: ``(b,)`` global frame indices; only a moving camera needs them.
            batch: Batch size.
        """
        camera = self.cameras[key]
        if camera.world_from_camera is not None:
            return torch.tensor(camera.world_from_camera).expand(batch, 4, 4)
        if camera.pose_key is None or index is None or camera.pose_key not in self.poses:
            return None
        return self.poses[camera.pose_key](index)


def require_rig(cameras: object) -> CameraRig:
    """What was given as ``cameras=``, if it is a rig.

    Raises:
        ConfigError: It is something else, or holds something else.
    """
    if not isinstance(cameras, CameraRig):
        problem = f"cameras= is a {type(cameras).__name__}"
    elif not all(isinstance(part, Mapping) for part in (cameras.cameras, cameras.poses)):
        problem = "cameras= is no mapping of cameras, or of poses"
    elif wrong := [key for key, camera in cameras.cameras.items() if not isinstance(camera, Camera)]:
        problem = f"cameras= holds no Camera for {', '.join(map(repr, wrong))}"
    elif wrong := [key for key, table in cameras.poses.items() if not isinstance(table, PoseTable)]:
        problem = f"cameras= holds no PoseTable for {', '.join(map(repr, wrong))}"
    else:
        return cameras
    raise ConfigError(
        f"{problem}, expected a CameraRig of Camera and PoseTable.",
        "Read one with CameraRig.load(path), or from a LeRobot dataset with sfkit_lerobot.camera_rig(dataset).",
    )
