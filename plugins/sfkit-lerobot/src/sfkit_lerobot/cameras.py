"""From a camera rig and a batch to the geometry of each view, and why it is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sfkit.views.cameras import CameraRig
from sfkit.views.geometry import depth_map, view_geometry
from sfkit_lerobot.normalization import Batch

__all__ = ["depth_map", "explain_missing", "view_geometry"]


def explain_missing(field: str, rig: CameraRig | None, batch: Batch, names: Sequence[str]) -> str:
    """Why no view has a field: which keys were looked for, and which are there."""
    if rig is None:
        return "No cameras were given to SpatialForcing.wrap: give it cameras=sfkit_lerobot.camera_rig(dataset)."
    calibrated = [name for name in names if name in rig.cameras]
    if not calibrated:
        return f"The cameras given are {_listed(rig.cameras)}; the policy's are {_listed(names)}."
    cameras = [rig.cameras[name] for name in calibrated]
    present = f"the batch has {_listed(batch)}."
    if field == "depth" and not any(camera.depth_key for camera in cameras):
        return f"None of the cameras given has a depth_key; {present}"
    if field == "depth":
        return f"Depth was looked for under {_listed(camera.depth_key for camera in cameras)}; {present}"
    if field == "world_from_camera":
        wanted = [camera.pose_key for camera in cameras]
        return f"Poses were looked for in the columns {_listed(wanted)} (by 'index'); {present}"
    return ""


def _listed(keys: Iterable[str | None]) -> str:
    return ", ".join(str(key) for key in keys if key is not None) or "none"
