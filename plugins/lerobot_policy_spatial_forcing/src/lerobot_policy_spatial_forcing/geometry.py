"""Cameras and picture statistics of the dataset, from its metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sfkit_lerobot import FrameKeys, camera_rig, image_stats
from sfkit_lerobot.dataset import recorded_depth
from sfkit_lerobot.normalization import visual_mode

from lerobot_policy_spatial_forcing.trainer import Trainer
from sfkit.errors import ConfigError
from sfkit.views.cameras import CameraRig

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


_GEOMETRY = ("depth", "intrinsics", "world_from_camera")


def cameras_of(meta: LeRobotDatasetMetadata | None, trainer: Trainer, path: str | None) -> CameraRig | None:
    """The cameras under the names that the policy has for them.

    None for a dataset without calibration or depth, and for one of which it is not known how its depth arrives.

    Args:
        meta: LeRobot's metadata of the dataset; None when a policy is built without one.
        trainer: Settings of the run.
        path: The calibration file; ``meta/cameras.json`` of the dataset by default.

    Raises:
        ConfigError: The file named is not there, or does not fit the dataset.
    """
    if meta is None:
        return None
    file = Path(path) if path is not None else Path(meta.root) / "meta" / "cameras.json"
    if path is not None and not file.is_file():
        raise ConfigError(f"--policy.sf.cameras={path} does not exist.", "Name a file of format sfkit.cameras/1.")
    if trainer.dataset is None or trainer.streams or not (file.is_file() or recorded_depth(meta)):
        return None
    return _renamed(camera_rig(trainer.dataset, file if file.is_file() else None), trainer)


def picture_stats(
    meta: LeRobotDatasetMetadata | None, config: PreTrainedConfig
) -> dict[str, dict[str, tuple[float, ...]]] | None:
    """Statistics by which the policy normalizes pictures; None where it leaves them as they are."""
    if meta is None or visual_mode(config) == "IDENTITY":
        return None
    return image_stats(SimpleNamespace(meta=meta))


def frames_of(handle: Any, trainer: Trainer) -> FrameKeys | None:
    """The dataset, for a teacher that finds its features by frame; None for others, which need no keys."""
    by_frame = any(pair.teacher.name.partition(":")[0] == "store" for pair in handle.config.pairs)
    return FrameKeys(trainer.dataset) if by_frame and trainer.dataset is not None and not trainer.streams else None


def require_cameras(handle: Any, rig: CameraRig | None, meta: LeRobotDatasetMetadata | None, trainer: Trainer) -> None:
    """Say at once, and not on the first batch, that a teacher needs what the dataset does not have.

    Raises:
        ConfigError: A teacher needs depth or calibration, and there is none, or it is not known how depth arrives.
    """
    for teacher in handle.teachers:
        wanted = sorted(set(teacher.requires) & set(_GEOMETRY))
        if not wanted:
            continue
        where = f"{meta.root}/meta/cameras.json" if meta is not None else "meta/cameras.json of the dataset"
        if rig is None and meta is not None:
            trainer.refuse_unknown_depth()
        if rig is None:
            raise ConfigError(
                f"Teacher {teacher.name!r} needs {', '.join(wanted)}, and there is no calibration at {where}.",
                "Record depth maps beside the pictures (front_depth beside front), write that file (format "
                "sfkit.cameras/1), name one with --policy.sf.cameras=, or choose a teacher that needs pictures alone.",
            )
        names = list(handle.adapter.policy.config.image_features)
        if not set(names) & set(rig.cameras):
            raise ConfigError(
                f"None of the policy's cameras ({', '.join(names)}) is calibrated; {where} has "
                f"{', '.join(rig.cameras)}.",
                'If the checkpoint has other names for them, map them: --rename_map=\'{"<dataset>": "<policy>"}\'.',
            )
        without = _without(rig, wanted)
        if without:
            raise ConfigError(
                f"Teacher {teacher.name!r} needs {', '.join(without)}, and no camera has that at {where}.",
                "Write it there (format sfkit.cameras/1), or choose options of the teacher that do without.",
            )
        if "depth" in wanted and not any(camera.depth_key for camera in rig.cameras.values()):
            raise ConfigError(
                f"Teacher {teacher.name!r} needs depth, and no camera in {where} names a depth map.",
                'Record depth maps and name them there as "depth_key", or choose a teacher that needs pictures alone.',
            )


def _without(rig: CameraRig, wanted: list[str]) -> list[str]:
    """What no camera of the rig has."""
    cameras = rig.cameras.values()
    known = {
        "intrinsics": any(camera.intrinsics is not None for camera in cameras),
        "world_from_camera": any(camera.world_from_camera or camera.pose_key for camera in cameras),
    }
    return [field for field in wanted if not known.get(field, True)]


def _renamed(rig: CameraRig, trainer: Trainer) -> CameraRig:
    names = trainer.rename_map
    cameras = {
        names.get(key, key): camera
        if camera.depth_key is None
        else camera.model_copy(update={"depth_key": names.get(camera.depth_key, camera.depth_key)})
        for key, camera in rig.cameras.items()
    }
    return replace(rig, cameras=cameras)
