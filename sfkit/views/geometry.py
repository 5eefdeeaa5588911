"""Camera maths. OpenCV axes (x right, y down, z forward); integer pixel coordinates are pixel centers; meters."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def resize_matrix(source: tuple[int, int], target: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> Tensor:
    """``(3, 3)`` float32: pixel of a ``source`` (h, w) picture to its pixel after resizing to ``target`` and shifting.

    Args:
        source: Height and width before.
        target: Height and width after resizing (edges aligned, as in ``interpolate(align_corners=False)``).
        offset: Rows and columns of padding added above and to the left afterward (negative: cropped).
    """
    sy, sx = target[0] / source[0], target[1] / source[1]
    top, left = offset
    return torch.tensor([[sx, 0.0, (sx - 1) / 2 + left], [0.0, sy, (sy - 1) / 2 + top], [0.0, 0.0, 1.0]])


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; from the host it is sent without waiting for what the device is doing.

    An ordinary copy does wait, and at every step. What is sent is read before the call returns, so that it may change.
    """
    from_host = tensor.device.type == "cpu" and device.type != "mps"
    return tensor.to(device, non_blocking=from_host)


def warp_intrinsics(intrinsics: Tensor, source_to_view: Tensor) -> Tensor:
    """Intrinsics ``(..., 3, 3)`` of the view from those of the source picture."""
    return source_to_view @ intrinsics


def warp_nearest(picture: Tensor, source_to_view: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a picture into the view without mixing values (depth must not be averaged across edges).

    Args:
        picture: ``(b, hs, ws)``.
        source_to_view: ``(3, 3)`` affine, the same for the batch.
        size: Height and width of the view.

    Returns:
        ``(b, h, w)``; 0 where the view looks beyond the picture (letterbox).
    """
    matrix = tuple(source_to_view.flatten().tolist())
    index, inside = _lookup(matrix, (picture.shape[-2], picture.shape[-1]), size, picture.device)
    warped = picture.flatten(1)[:, index].reshape(-1, *size)
    return torch.where(inside, warped, torch.zeros((), dtype=warped.dtype, device=warped.device))


@functools.lru_cache(maxsize=64)
def _lookup(
    matrix: tuple[float, ...], source: tuple[int, int], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each view pixel the flat index of its source pixel, and whether it has one. The same at every step."""
    (h, w), (hs, ws) = size, source
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
    """Rigidly move ``(..., h, w, 3)`` camera points with ``(..., 4, 4)`` poses."""
    pose = world_from_camera.to(points.dtype)
    rotation, translation = pose[..., None, :3, :3], pose[..., None, None, :3, 3]
    return points @ rotation.transpose(-1, -2) + translation
