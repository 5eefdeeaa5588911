"""From a camera rig and a batch to the geometry of each view, in the pixels of the view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit.views.cameras import CameraRig
from sfkit.views.geometry import on_device, resize_matrix, warp_intrinsics, warp_nearest
from sfkit.views.letterbox import Placement

#: Relative difference of aspect ratios up to which a depth map and its image may be aligned: sizes round.
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class ViewGeometry:
    """Optional fields of :class:`sfkit.Views`. A field is None when no view has it.

    Otherwise views without it hold what every teacher masks: depth 0, the identity as intrinsics, poses of NaN.
    Intrinsics of NaN are those of a camera whose calibration is unknown.
    """

    depth: Tensor | None
    intrinsics: Tensor | None
    world_from_camera: Tensor | None


def view_geometry(
    rig: CameraRig | None,
    batch: Mapping[str, Any],
    boxes: Mapping[str, Placement | None],
    like: Tensor,
    frame: int = -1,
) -> ViewGeometry:
    """Depth, intrinsics and poses of the views.

    Args:
        rig: Calibration; None where there is none.
        batch: What holds depth maps by ``depth_key``, and the frames' ``index`` for poses: the batch of forward.
        boxes: How each camera's picture became a view, in the order of the views; None for a camera that is missing.
        like: ``(b, v, 3, h, w)`` pictures, for sizes and device.
        frame: Which of several time steps of a depth map is the present one.
    """
    if rig is None:
        return ViewGeometry(None, None, None)
    calibrated = {key: box for key, box in boxes.items() if box is not None and key in rig.cameras}
    b, (h, w) = like.shape[0], like.shape[-2:]
    depth = {
        key: found for key, box in calibrated.items() if (found := _depth(rig, batch, key, box, frame)) is not None
    }
    intrinsics = {
        key: on_device(warp_intrinsics(rig.intrinsics(key, box.source), box.matrix), like.device).expand(b, 3, 3)
        for key, box in calibrated.items()
    }
    index = batch.get("index")
    index = on_device(index.reshape(-1), like.device) if isinstance(index, Tensor) else None
    poses = {key: on_device(found, like.device) for key in calibrated if (found := rig.pose(key, index, b)) is not None}
    eye = torch.eye(3, device=like.device).expand(b, 3, 3)
    return ViewGeometry(
        _stack(boxes, depth, like.new_zeros(b, h, w, dtype=torch.float32)),
        _stack(boxes, intrinsics, eye),
        _stack(boxes, poses, like.new_full((b, 4, 4), torch.nan, dtype=torch.float32)),
    )


def _stack(boxes: Mapping[str, Any], found: Mapping[str, Tensor], otherwise: Tensor) -> Tensor | None:
    return torch.stack([found.get(key, otherwise) for key in boxes], 1) if found else None


def _depth(rig: CameraRig, batch: Mapping[str, Any], key: str, box: Placement, frame: int) -> Tensor | None:
    """``(b, h, w)`` meters in the view, or None where the batch has no map for this camera."""
    depth_key = rig.cameras[key].depth_key
    if depth_key is None or depth_key not in batch:
        return None
    depth = depth_map(batch[depth_key], depth_key, frame)
    _require_same_aspect(depth, depth_key, box.source, key)
    # The map may be of another size than the picture, of the same field of view.
    to_view = box.matrix @ resize_matrix((depth.shape[-2], depth.shape[-1]), box.source)
    return rig.known_depth(key, warp_nearest(depth, to_view, box.view) * rig.depth_scale(key))


def _require_same_aspect(depth: Tensor, depth_key: str, source: tuple[int, int], key: str) -> None:
    """Refuse a map ``(b, h, w)`` of another shape than its image: it is not aligned to color."""
    h, w = depth.shape[-2:]
    if abs((w * source[0]) / (h * source[1]) - 1) > _ASPECT_TOLERANCE:
        raise ViewsError(
            f"{depth_key} is {h}x{w}, and its image {key} is {source[0]}x{source[1]}: another aspect ratio, so the "
            "pixels of the two do not correspond.",
            "Align depth to color when you record (RealSense: rs.align), or crop both in the same way.",
        )


def depth_map(value: Tensor, key: str, frame: int = -1) -> Tensor:
    """``(b, h, w)`` float32 from what a batch holds: with or without a channel, the present one of several time steps.

    Raises:
        ViewsError: Another shape, or a precision in which depth is too coarse.
    """
    if value.dtype == torch.bfloat16:
        raise ViewsError(
            f"{key} arrives as bfloat16: 998.9 mm has become 1000 mm.",
            "Keep the batch in float32: cast the model, not its inputs (FSDP2: cast_forward_inputs=False).",
        )
    if value.ndim == 5 and value.shape[2] == 1:
        return value[:, frame, 0].float()
    if value.ndim == 4 and value.shape[1] == 1:
        return value[:, 0].float()
    if value.ndim == 3:
        # Sensors give uint16, for which torch has almost no operation.
        return value.float()
    raise ViewsError(
        f"{key} has shape {tuple(value.shape)}, which is no depth map.",
        "Expected (b, h, w), (b, 1, h, w) or (b, time, 1, h, w).",
    )
