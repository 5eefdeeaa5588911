"""From a LeRobot dataset to the cameras that :meth:`sfkit.SpatialForcing.wrap` takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sfkit.errors import ConfigError, shown
from sfkit.views.cameras import Camera, CameraRig, PoseTable
from sfkit_lerobot.combined import parts
from sfkit_lerobot.image_transforms import refuse_moving

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

#: Meters beyond which LeRobot returns no millimeters: it clips them to 16 bits.
_LARGEST = 65.535


def camera_rig(dataset: object, path: str | Path | None = None) -> CameraRig:
    """Calibration, depth units and poses of a dataset's cameras.

    Args:
        dataset: A ``LeRobotDataset``, whole or opened with some ``episodes``, or a ``Subset``, ``ConcatDataset``,
            ``MultiLeRobotDataset`` or ``FutureFrames`` of some. Several must have the same cameras, at rest: a sample
            does not say which of them it comes from.
        path: The calibration file; ``meta/cameras.json`` of the dataset by default. It need not give ``depth_unit``:
            LeRobot knows in which unit it returns depth maps. Where there is no such file, the rig is what LeRobot
            itself knows: which camera has a depth map, and its unit. Intrinsics are then unknown.

    Raises:
        ConfigError: The file is unreadable, names a column that the dataset lacks, a depth unit is not recorded or
            contradicts LeRobot's, a pose is not one, datasets differ, or the dataset's image
            transforms move pixels.
    """
    datasets = parts(dataset)
    first, *others = [_rig_of(part, path) for part in datasets]
    for part, other in zip(datasets[1:], others, strict=True):
        _require_same_rig(first, datasets[0].root, other, part.root)
    return first


def _rig_of(dataset: LeRobotDataset, path: str | Path | None) -> CameraRig:
    """The rig of one LeRobot dataset."""
    _refuse_moving_transforms(dataset)
    file = Path(dataset.root) / "meta" / "cameras.json"
    known = path is None and not file.is_file() and recorded_depth(dataset.meta)
    rig = CameraRig(known) if known else CameraRig.load(path or file)
    cameras = {key: _with_unit(key, camera, dataset) for key, camera in rig.cameras.items()}
    pose_keys = {camera.pose_key for camera in cameras.values() if camera.pose_key is not None}
    return CameraRig(cameras, {key: pose_table(dataset, key) for key in sorted(pose_keys)})


def _require_same_rig(first: CameraRig, root: Path, other: CameraRig, other_root: Path) -> None:
    """Refuse two datasets that one rig cannot describe."""
    keys = sorted(set(first.cameras) | set(other.cameras))
    different = [
        f"{field} of {key}"
        for key in keys
        for field in Camera.model_fields
        if getattr(first.cameras.get(key), field, None) != getattr(other.cameras.get(key), field, None)
    ]
    if different:
        raise ConfigError(
            f"{root} and {other_root} differ in {', '.join(different)}, and a sample does not say which of them it "
            "comes from.",
            "Train on datasets with the same calibration, open all with the same depth_output_unit, or name one file "
            "for all with path=.",
        )
    if first.poses or other.poses:
        moving = ", ".join(sorted({*first.poses, *other.poses}))
        raise ConfigError(
            f"{root} and {other_root} have cameras that move ({moving}), whose poses are looked up by the frame's "
            "index, and each dataset counts its frames from 0.",
            "Merge them into one dataset (lerobot.datasets.dataset_tools.merge_datasets), or leave pose_key out.",
        )


def recorded_depth(meta: LeRobotDatasetMetadata) -> dict[str, Camera]:
    """Cameras that a dataset has depth maps of, by their names: that of ``front`` is ``front_depth``.

    Args:
        meta: LeRobot's metadata of the dataset.

    Returns:
        By key of the image, without intrinsics. A depth map of no camera's name belongs to nobody.
    """
    found = {}
    for depth_key in meta.depth_keys:
        key = depth_key.removesuffix("_depth")
        if key in meta.camera_keys and key not in meta.depth_keys:
            height, width = _image_size(meta.features[key])
            found[key] = Camera(width=width, height=height, depth_key=depth_key)
    return found


def _image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    try:
        names = list(feature.get("names") or ["height", "width", "channels"])
        height, width = (int(feature["shape"][names.index(side)]) for side in ("height", "width"))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        shape = {key: feature.get(key) for key in ("shape", "names")}
        raise ConfigError(
            f"meta/info.json gives a picture {shown(shape)}.", 'Write "shape" and "names" with "height" and "width".'
        ) from error
    return height, width


def image_stats(dataset: Any) -> dict[str, dict[str, tuple[float, ...]]]:
    """Statistics of the dataset's images, as the adapters' option of that name takes them.

    Only needed for a policy whose ``normalization_mapping["VISUAL"]`` is not IDENTITY.

    Raises:
        ConfigError: There are several datasets: which statistics the policy normalizes by is then not known.
    """
    if not hasattr(dataset, "meta"):
        dataset, *others = parts(dataset)
        if others:
            raise ConfigError(
                "Several datasets have several statistics.",
                "Give those that the policy's normalizer was built with, by camera: "
                '{"observation.images.front": {"mean": (...), "std": (...)}}.',
            )
    color = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    try:
        return {
            key: {
                name: tuple(torch.as_tensor(value).double().flatten().tolist())
                for name, value in dataset.meta.stats[key].items()
                if name != "count"
            }
            for key in color
        }
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"The statistics of {', '.join(color)} cannot be read: {type(error).__name__}: {error}.",
            "Write meta/stats.json anew: lerobot.datasets.compute_stats.",
        ) from error


def pose_table(dataset: LeRobotDataset, key: str) -> PoseTable:
    """Poses of a moving camera from a column of 16 numbers, a 4x4 ``world_from_camera`` by rows, in meters.

    Args:
        dataset: A ``LeRobotDataset``; frames of episodes that are not loaded are not in the table.
        key: The column.

    Raises:
        ConfigError: No such column, or it does not hold rigid transforms.
    """
    if key not in dataset.meta.features:
        columns = ", ".join(dataset.meta.features)
        raise ConfigError(f"cameras.json names the pose column {key!r}, the dataset has {columns}.")
    rows = dataset.hf_dataset.select_columns(["index", key]).with_format("numpy")[:]
    try:
        index = torch.as_tensor(rows["index"]).reshape(-1).long()
        poses = torch.as_tensor(rows[key]).double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The pose column {key!r} holds no numbers: {error}") from error
    count = poses.numel() // max(len(index), 1)
    if not len(index) or poses.numel() != 16 * len(index):
        raise ConfigError(f"The pose column {key!r} holds {count} numbers, expected 16.")
    poses = poses.reshape(-1, 4, 4)
    order = index.argsort()
    try:
        return PoseTable(index[order], poses[order].float())
    except ConfigError as error:
        raise ConfigError(
            f"The pose column {key!r} does not hold 4x4 transforms: {error.message}",
            "Write world_from_camera by rows (numpy: pose.reshape(16)), float32.",
        ) from error


def _with_unit(key: str, camera: Camera, dataset: LeRobotDataset) -> Camera:
    """The camera with the unit in which its depth map arrives in a batch."""
    depth_key = camera.depth_key
    if depth_key is None:
        return camera
    if depth_key not in dataset.meta.features:
        known = ", ".join(dataset.meta.depth_keys) or "none"
        raise ConfigError(f"{key} names the depth map {depth_key!r}; depth maps of the dataset: {known}.")
    feature = dataset.meta.features[depth_key]
    unit = _unit_from_lerobot(depth_key, feature, dataset)
    if unit is None and camera.depth_unit is None:
        raise ConfigError(
            f"The unit of {depth_key} is not recorded: LeRobot would return the map as it was stored.",
            f'Set "depth_unit" to "m" or "mm" in the info of {depth_key} in meta/info.json, or in cameras.json.',
        )
    if unit is not None and camera.depth_unit not in (None, unit):
        raise ConfigError(
            f"{depth_key} arrives in {unit} (depth_output_unit={dataset.depth_output_unit!r}), but cameras.json says "
            f"{camera.depth_unit}.",
            "Leave depth_unit out of cameras.json: LeRobot converts the maps, and knows.",
        )
    ends = _recorded_range(feature, camera)
    return camera.model_copy(update={"depth_unit": unit or camera.depth_unit, "depth_range": ends})


def _recorded_range(feature: Mapping[str, Any], camera: Camera) -> tuple[float, float] | None:
    """Meters between which a depth map was recorded: LeRobot's video clips to them, and knows no missing depth."""
    if feature["dtype"] != "video":
        return camera.depth_range
    from lerobot.configs.video import DepthEncoderConfig

    near, far = camera.depth_range or (0.0, math.inf)
    try:
        encoder = DepthEncoderConfig.from_video_info(feature.get("info"))
        return max(near, encoder.depth_min), min(far, encoder.depth_max, _LARGEST)
    except Exception as error:  # LeRobot's class takes what the file says
        raise ConfigError(
            f"meta/info.json describes a depth video wrongly: {type(error).__name__}: {error}.",
            "Write the info of the depth map as LeRobot does (video.depth_min and video.depth_max in meters).",
        ) from error


def _unit_from_lerobot(depth_key: str, feature: Mapping[str, Any], dataset: LeRobotDataset) -> str | None:
    """The unit that LeRobot converts a map to, or None where it does not convert."""
    if feature["dtype"] not in ("image", "video"):
        return None
    if depth_key not in dataset.meta.depth_keys:
        raise ConfigError(
            f"{depth_key} is stored as a color image, not as a depth map.",
            'Record it with shape (height, width, 1) and info={"is_depth_map": True}.',
        )
    converts = feature["dtype"] == "video" or (feature.get("info") or {}).get("depth_unit") is not None
    return str(dataset.depth_output_unit) if converts else None


def _refuse_moving_transforms(dataset: LeRobotDataset) -> None:
    color = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    for size in sorted({_image_size(dataset.meta.features[key]) for key in color}):
        refuse_moving(getattr(dataset, "image_transforms", None), size)
