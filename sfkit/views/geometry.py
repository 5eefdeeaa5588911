"""Camera geometry: from the pixels of an image to those of its view, and to points in meters.

Camera axes are OpenCV's (x right, y down, z forward); integer pixel coordinates are pixel centers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit.views.cameras import CameraRig

#: Relative difference of aspect ratios up to which a depth map and its image may be aligned: sizes round.
_ASPECT_TOLERANCE = 0.02


def resize_matrix(source: tuple[int, int], target: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> Tensor:
    """``(3, 3)`` float32: pixel of a ``source`` (h, w) image to its pixel after resizing to ``target`` and shifting.

    Args:
        source: Height and width before.
        target: Height and width after resizing (edges aligned, as in ``interpolate(align_corners=False)``).
        offset: Rows and columns of padding added above and to the left afterward (negative: cropped).
    """
    sy, sx = target[0] / source[0], target[1] / source[1]
    top, left = offset
    return torch.tensor([[sx, 0.0, (sx - 1) / 2 + left], [0.0, sy, (sy - 1) / 2 + top], [0.0, 0.0, 1.0]])


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``(b, ...)`` on ``device``; from the host it is sent without waiting for the device, as an ordinary copy would.

    The call returns after the host's memory is read, so ``tensor`` may change afterward.
    """
    from_host = tensor.device.type == "cpu" and device.type != "mps"
    return tensor.to(device, non_blocking=from_host)


def warp_intrinsics(intrinsics: Tensor, source_to_view: Tensor) -> Tensor:
    """Intrinsics ``(..., 3, 3)`` of the view from those of the source image."""
    return source_to_view @ intrinsics


def warp_nearest(image: Tensor, source_to_view: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring an image into the view without mixing values (depth must not be averaged across edges).

    Args:
        image: ``(b, hs, ws)``.
        source_to_view: ``(3, 3)`` affine, the same for the batch.
        size: Height and width of the view.

    Returns:
        ``(b, h, w)``; 0 where the view looks beyond the image (letterbox).
    """
    # Hashable, for the cache.
    matrix = tuple(source_to_view.flatten().tolist())
    index, inside = _lookup(matrix, (image.shape[-2], image.shape[-1]), size, image.device)
    warped = image.flatten(1)[:, index].reshape(-1, *size)
    return torch.where(inside, warped, torch.zeros((), dtype=warped.dtype, device=warped.device))


@functools.lru_cache(maxsize=64)
def _lookup(
    matrix: tuple[float, ...], source: tuple[int, int], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each view pixel the flat index of its source pixel, and whether it has one. The same at every step."""
    (h, w), (hs, ws) = size, source
    # float64: a rounded coordinate at the border of two pixels would pick the wrong one.
    inverse = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64).reshape(3, 3))
    rows, columns = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
    y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
    # A view pixel shows the source where its center falls inside a source pixel's square, whose edges are at -0.5.
    inside = (x >= -0.5) & (x < ws - 0.5) & (y >= -0.5) & (y < hs - 0.5)
    flat = y.round().clamp(0, hs - 1).long() * ws + x.round().clamp(0, ws - 1).long()
    return on_device(flat.flatten(), device), on_device(inside, device)


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points in the camera frame from z-depth.

    Args:
        depth: ``(..., h, w)`` meters.
        intrinsics: ``(..., 3, 3)``.

    Returns:
        ``(..., h, w, 3)`` meters, in float32 (or float64 where depth is); NaN depth stays NaN.
    """
    dtype = torch.promote_types(depth.dtype, torch.float32)
    depth, intrinsics = depth.to(dtype), intrinsics.to(dtype)
    h, w = depth.shape[-2:]
    columns = torch.arange(w, device=depth.device, dtype=dtype)
    rows = torch.arange(h, device=depth.device, dtype=dtype)[:, None]
    # Closed form for an upper triangular K (skew included): a solve per pixel would be far dearer.
    fx, skew, cx = (intrinsics[..., 0, i, None, None] for i in range(3))
    fy, cy = (intrinsics[..., 1, i, None, None] for i in (1, 2))
    y = (rows - cy) / fy
    x = (columns - cx - skew * y) / fx
    return torch.stack([x * depth, y.expand_as(x) * depth, depth], dim=-1)


def to_world(points: Tensor, world_from_camera: Tensor) -> Tensor:
    """Camera points ``(..., h, w, 3)`` in the world frame, by ``(..., 4, 4)`` poses."""
    pose = world_from_camera.to(points.dtype)
    rotation, translation = pose[..., None, :3, :3], pose[..., None, None, :3, 3]
    return points @ rotation.transpose(-1, -2) + translation


Size = tuple[int, int]


class Placement(Protocol):
    """Where the pixels of an image are in the view. Sizes are height and width."""

    @property
    def source(self) -> Size:
        """Size of the image in the batch."""

    @property
    def view(self) -> Size:
        """Size of the view."""

    @property
    def matrix(self) -> Tensor:
        """``(3, 3)`` float32: pixel of the image to pixel of the view."""

    @property
    def valid(self) -> Tensor:
        """``(h, w)`` bool: False where the view shows nothing of the image."""


@dataclass(frozen=True)
class Letterbox:
    """Where the pixels of an image are in the view. Sizes are height and width.

    Attributes:
        source: Size of the image in the batch.
        resized: Its size within the view.
        view: Size of the view.
        offset: Rows of padding above it, and columns to its left.
    """

    source: Size
    resized: Size
    view: Size
    offset: Size = (0, 0)

    @property
    def matrix(self) -> Tensor:
        """``(3, 3)`` float32: pixel of the image to pixel of the view."""
        return resize_matrix(self.source, self.resized, self.offset)

    @property
    def valid(self) -> Tensor:
        """``(h, w)`` bool: False where the view is padding."""
        inside = torch.zeros(self.view, dtype=torch.bool)
        (top, left), (h, w) = self.offset, self.resized
        inside[top : top + h, left : left + w] = True
        return inside


def unchanged(size: Size) -> Letterbox:
    """A view that is the image itself."""
    return Letterbox(size, size, size)


def fitted(source: Size, view: Size) -> Size:
    """Size of an image within a view, rounded as the ``resize_with_pad`` functions of LeRobot 0.6.1 and openpi round.

    The quotient of floats is part of the contract: another order of operations is a pixel off for some sizes.
    """
    ratio = max(source[1] / view[1], source[0] / view[0])
    return int(source[0] / ratio), int(source[1] / ratio)


def pad_around(source: Size, view: Size) -> Letterbox:
    """The image is in the middle; of an odd number of lines the smaller half comes first (pi0 everywhere)."""
    if source == view:
        return unchanged(source)
    resized = fitted(source, view)
    return Letterbox(source, resized, view, ((view[0] - resized[0]) // 2, (view[1] - resized[1]) // 2))


@dataclass(frozen=True)
class ViewGeometry:
    """Optional fields of :class:`sfkit.Views`. A field is None when no view has it.

    Otherwise views without it hold values that every teacher masks: depth 0, the identity as intrinsics, poses of NaN.
    Intrinsics of NaN belong to a camera whose calibration is unknown.
    """

    depth: Tensor | None = None
    intrinsics: Tensor | None = None
    world_from_camera: Tensor | None = None


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
        batch: The batch of forward, with depth maps by ``depth_key``, and the frames' ``index`` for poses.
        boxes: How each camera's image became a view, in the order of the views; None for a camera that is missing.
        like: ``(b, v, 3, h, w)`` images, for sizes and device.
        frame: Which of several time steps of a depth map is the current one.
    """
    if rig is None:
        return ViewGeometry()
    calibrated = {key: box for key, box in boxes.items() if box is not None and key in rig.cameras}
    b, (h, w) = like.shape[0], like.shape[-2:]
    index = batch.get("index")
    index = on_device(index.reshape(-1), like.device) if isinstance(index, Tensor) else None
    depth = {key: _depth(rig, batch, key, box, frame) for key, box in calibrated.items()}
    intrinsics = {key: warp_intrinsics(rig.intrinsics(key, box.source), box.matrix) for key, box in calibrated.items()}
    poses = {key: rig.pose(key, index, b) for key in calibrated}
    return ViewGeometry(
        _stack(boxes, depth, like.new_zeros(b, h, w, dtype=torch.float32)),
        _stack(boxes, intrinsics, torch.eye(3, device=like.device).expand(b, 3, 3)),
        _stack(boxes, poses, like.new_full((b, 4, 4), torch.nan, dtype=torch.float32)),
    )


def _stack(boxes: Iterable[str], values: Mapping[str, Tensor | None], otherwise: Tensor) -> Tensor | None:
    """``(b, v, ...)`` from the values of cameras and, without one, ``otherwise`` ``(b, ...)``; None if none has one."""
    known = {key: on_device(value, otherwise.device) for key, value in values.items() if value is not None}
    return torch.stack([known.get(key, otherwise).expand_as(otherwise) for key in boxes], 1) if known else None


def _depth(rig: CameraRig, batch: Mapping[str, Any], key: str, box: Placement, frame: int) -> Tensor | None:
    """``(b, h, w)`` meters in the view, or None where the batch has no map for this camera."""
    depth_key = rig.cameras[key].depth_key
    if depth_key is None or depth_key not in batch:
        return None
    depth = depth_map(batch[depth_key], depth_key, frame)
    _require_same_aspect(depth, depth_key, box.source, key)
    # The map may be of another size than the image, of the same field of view.
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
    """``(b, h, w)`` float32 from a map of a batch: ``(b, h, w)``, ``(b, 1, h, w)`` or ``(b, time, 1, h, w)``.

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
    raise ViewsError(f"{key} has shape {tuple(value.shape)}, expected (b, h, w), (b, 1, h, w) or (b, time, 1, h, w).")
