"""Which features of a dataset a policy may be given: images, state and actions, but no geometry and no labels."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from sfkit.views.cameras import CameraRig

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.configs.types import PolicyFeature

#: Keys that hold calibration, poses or labels by the names in use. Keys that a :class:`CameraRig` names are added.
GEOMETRY_PATTERNS = (
    "camera_pose.*",
    "observation.camera.*",
    "observation.cameras.*",
    "*.intrinsics",
    "*.extrinsics",
    "*.camera_pose",
    "*.world_from_camera",
    "label.*",
)


def policy_features(
    features: Mapping[str, Mapping[str, Any]], rig: CameraRig | None = None
) -> dict[str, PolicyFeature]:
    """LeRobot's ``dataset_to_policy_features``, without what only the teacher and the probes may see.

    LeRobot types a depth map as an image, on which policies fail, and calibration as a state, which its normalizer
    then rescales. Left out here are depth maps, images of one channel, and keys of :data:`GEOMETRY_PATTERNS`.

    Args:
        features: ``dataset.meta.features``.
        rig: Leave out its depth maps and poses too, whatever their names.

    Returns:
        ``PolicyFeature`` by key, inputs and actions together, as LeRobot's function gives them.
    """
    from lerobot.utils.feature_utils import dataset_to_policy_features

    named = geometry_keys(rig)
    kept = {
        key: feature
        for key, feature in features.items()
        if not (key in named or _is_named_like_geometry(key) or is_depth_feature(feature))
    }
    result: dict[str, PolicyFeature] = dataset_to_policy_features(kept)
    return result


def strip_geometry(config: PreTrainedConfig, rig: CameraRig | None = None) -> list[str]:
    """Remove from a policy's ``input_features``, in place, what :func:`policy_features` leaves out.

    Call it before the policy and its processors are built: both read the features.

    Args:
        config: A LeRobot policy configuration.
        rig: As for :func:`policy_features`.

    Returns:
        The keys that were removed.
    """
    named = geometry_keys(rig)
    inputs = config.input_features or {}
    removed = [
        key
        for key, feature in inputs.items()
        if key in named or _is_named_like_geometry(key) or _is_single_channel(feature)
    ]
    for key in removed:
        del inputs[key]
    return removed


def geometry_keys(rig: CameraRig | None) -> set[str]:
    """Keys of the depth maps and pose columns that a rig names."""
    cameras = rig.cameras.values() if rig is not None else ()
    return {key for camera in cameras for key in (camera.depth_key, camera.pose_key) if key is not None}


def is_depth_feature(feature: Mapping[str, Any]) -> bool:
    """Whether a dataset's feature is a depth map: LeRobot's mark, or an image of one channel."""
    if feature["dtype"] not in ("image", "video"):
        return False
    marks = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    shape = tuple(feature["shape"])
    channels_first = "channel" in str((feature.get("names") or [""])[0])
    single = shape[0 if channels_first else -1] == 1
    return single or bool(marks.get("is_depth_map") or marks.get("video.is_depth_map"))


def _is_single_channel(feature: PolicyFeature) -> bool:
    return bool(getattr(feature.type, "value", feature.type) == "VISUAL" and feature.shape[0] == 1)


def _is_named_like_geometry(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in GEOMETRY_PATTERNS)
