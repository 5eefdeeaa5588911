"""Does depth + intrinsics + pose land on the surfaces that the physics engine knows?

While recording, rays are cast through some pixel centers with `mujoco.mj_ray`, which never touches
the renderer. The hits are kept with the recording, so that it can be checked again without MuJoCo,
on the values that come back from disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEDIAN_TOLERANCE_M = 0.001
P90_TOLERANCE_M = 0.002
"""Storage rounds to millimeters: half of one, along an oblique ray, is what may be missing."""


class GeometryError(RuntimeError):
    """Re-projected depth is not where the simulator's surfaces are."""


@dataclass(frozen=True)
class Agreement:
    """Distances, in meters, between re-projected pixels and ray hits."""

    count: int
    median: float
    p90: float

    @classmethod
    def of(cls, distances: NDArray[np.float64]) -> Agreement:
        """Summary of (n,) distances; NaN, a ray that met nothing, counts as infinitely far."""
        far = np.where(np.isnan(distances), np.inf, distances)
        return cls(len(far), float(np.median(far)), float(np.percentile(far, 90, method="higher")))

    def require(self, what: str) -> None:
        """Raise `GeometryError` if either figure is over its tolerance."""
        if self.count and self.median <= MEDIAN_TOLERANCE_M and self.p90 <= P90_TOLERANCE_M:
            return
        raise GeometryError(
            f"{what}: re-projected depth is {self.median * 1000:.2f} mm (median) and "
            f"{self.p90 * 1000:.2f} mm (90th percentile) away from MuJoCo's ray casts over {self.count} "
            f"pixels; tolerated are {MEDIAN_TOLERANCE_M * 1000:g} and {P90_TOLERANCE_M * 1000:g}. "
            "Intrinsics, poses or depth are wrong."
        )


def unproject(
    pixels: NDArray[Any], depth_m: NDArray[Any], camera_matrix: NDArray[Any], world_from_camera: NDArray[Any]
) -> NDArray[np.float64]:
    """World points of pixels.

    Args:
        pixels: (n, 2), columns u (right) and v (down), pixel centers at integers.
        depth_m: (n,), meters along the optical axis.
        camera_matrix: (3, 3), in the units of `pixels`.
        world_from_camera: (4, 4) or (n, 4, 4), OpenCV axes, meters.

    Returns:
        (n, 3), meters.
    """
    homogeneous = np.column_stack([pixels, np.ones(len(pixels))])
    points = homogeneous @ np.linalg.inv(camera_matrix).T * np.asarray(depth_m)[:, None]
    rotation, origin = world_from_camera[..., :3, :3], world_from_camera[..., :3, 3]
    world: NDArray[np.float64] = np.einsum("...ij,...j->...i", rotation, points) + origin
    return world


def cast_rays(
    model: Any, data: Any, pixels: NDArray[Any], camera_matrix: NDArray[Any], world_from_camera: NDArray[Any]
) -> NDArray[np.float64]:
    """Where the rays through `pixels` first meet a visible geom; NaN where they meet none.

    Args:
        model: MuJoCo model.
        data: MuJoCo data, kinematics up to date.
        pixels: (n, 2), as in `unproject`.
        camera_matrix: (3, 3).
        world_from_camera: (4, 4).

    Returns:
        (n, 3) world points, meters. Sites are no geoms, so goal markers are seen through.
    """
    import mujoco

    visible = mujoco.MjvOption().geomgroup
    origin = world_from_camera[:3, 3].astype(np.float64)
    targets = unproject(pixels, np.ones(len(pixels)), camera_matrix, world_from_camera)
    hits = np.full((len(pixels), 3), np.nan)
    geom = np.zeros(1, dtype=np.int32)
    for row, target in enumerate(targets):
        ray = target - origin
        distance = mujoco.mj_ray(model, data, origin, ray, visible, 1, -1, geom)
        if distance >= 0:
            hits[row] = origin + distance * ray
    return hits


def pick_pixels(depth_mm: NDArray[np.uint16], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Up to `count` distinct pixels (n, 2), columns u and v, where a depth map (h, w, 1) has a value."""
    v, u = np.nonzero(depth_mm[..., 0])
    chosen = rng.choice(len(v), size=min(count, len(v)), replace=False)
    return np.column_stack([u[chosen], v[chosen]])
