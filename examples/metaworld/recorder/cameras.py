"""The two cameras: rendering, intrinsics and poses.

Conventions: OpenCV camera axes (x right, y down, z forward), integer pixel coordinates are pixel
centers, `world_from_camera` maps homogeneous camera points to world points, lengths in meters.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recorder.options import Options, RecordingError

MAX_DEPTH_M = 65.535
"""What uint16 millimeters can hold; anything farther is stored as 0, like the background."""

SUPERSAMPLING = 4
"""RGB is rendered so many times larger and averaged: OpenGL's own multisampling is far slower on a
CPU, and without either a goal marker a few pixels wide flickers."""


@dataclass(frozen=True)
class Camera:
    """One camera of the recording and how it derives from Meta-World's."""

    name: str
    mujoco_name: str
    moving: bool
    half_turn: bool = False
    """Meta-World mounts it upside-down: turn the image, and the pose with it, by 180 degrees."""
    position: tuple[float, float, float] | None = None
    fovy: float | None = None
    """Degrees; None keeps the model's."""

    @property
    def image_key(self) -> str:
        return f"observation.images.{self.name}"

    @property
    def depth_key(self) -> str:
        return f"observation.images.{self.name}_depth"

    @property
    def pose_key(self) -> str:
        return f"camera_pose.{self.name}"


def cameras_for(options: Options) -> tuple[Camera, Camera]:
    """The fixed camera where LeRobot's Meta-World environment puts it, and the one on the gripper."""
    corner = Camera(
        "corner2",
        "corner2",
        moving=False,
        half_turn=True,
        position=(0.75, 0.075, 0.7),
        fovy=options.corner_fovy,
    )
    return corner, Camera("wrist", "gripperPOV", moving=True)


def intrinsics(fovy: float, size: int) -> NDArray[np.float64]:
    """Pinhole matrix, shape (3, 3), in pixels, of a square image with `fovy` degrees top to bottom.

    MuJoCo's pixel grid is symmetric about the optical axis, which therefore lies between the two
    middle pixels: (size - 1) / 2 when pixel centers are integers.
    """
    focal = 0.5 * size / np.tan(np.deg2rad(fovy) / 2)
    center = (size - 1) / 2
    return np.array([[focal, 0, center], [0, focal, center], [0, 0, 1]])


def choose_gl() -> str:
    """Set MUJOCO_GL to a backend that works here; call before mujoco is first imported.

    Returns:
        The backend's name. A MUJOCO_GL set by the user is respected, as is a platform with a
        single sensible backend (macOS, Windows).

    Raises:
        RecordingError: No headless backend can open a context.
    """
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "default")
    # In a child process: a backend that fails on import cannot be swapped for another one later.
    probe = "import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free()"
    for backend in ("egl", "osmesa"):
        environment = os.environ | {"MUJOCO_GL": backend}
        result = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=False)
        if result.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise RecordingError(
        "MuJoCo cannot render: neither EGL nor OSMesa opens a context. On Debian or Ubuntu install "
        "libegl1 and libgl1-mesa-dri (EGL), or libosmesa6 (OSMesa, software only); or set MUJOCO_GL yourself."
    )


class CameraRig:
    """Renders RGB and depth of one simulated scene from the recording's cameras.

    The model's cameras are changed in place (position, field of view), identically for every task.
    """

    def __init__(self, model: Any, data: Any, cameras: tuple[Camera, ...], options: Options) -> None:
        import mujoco

        self._model, self._data = model, data
        for camera in cameras:
            handle = model.camera(camera.mujoco_name)
            if camera.position is not None:
                handle.pos[:] = camera.position
            if camera.fovy is not None:
                handle.fovy[:] = camera.fovy
        model.vis.quality.offsamples = 0  # read when a rendering context is made, as are the next two
        model.vis.global_.offwidth = model.vis.global_.offheight = max(
            options.image_size * SUPERSAMPLING, options.depth_size
        )
        self._rgb = _renderer(model, options.image_size * SUPERSAMPLING)
        self._depth = _renderer(model, options.depth_size)
        self._depth.enable_depth_rendering()
        # Sites (the goal marker among them) are drawings, not matter: a depth sensor sees through them.
        self._matter_only = mujoco.MjvOption()
        self._matter_only.sitegroup[:] = 0
        self._background_m = 0.99 * float(model.vis.map.zfar * model.stat.extent)

    def intrinsics(self, camera: Camera, size: int) -> NDArray[np.float64]:
        """Pinhole matrix, shape (3, 3), in pixels of an image of side `size`."""
        return intrinsics(float(self._model.camera(camera.mujoco_name).fovy[0]), size)

    def world_from_camera(self, camera: Camera) -> NDArray[np.float64]:
        """Current pose, shape (4, 4), OpenCV axes, meters."""
        handle = self._data.camera(camera.mujoco_name)
        # MuJoCo's cameras look along -z with y up. A half turn of the image negates x and y.
        axes = np.diag([-1.0, 1.0, -1.0]) if camera.half_turn else np.diag([1.0, -1.0, -1.0])
        pose = np.eye(4)
        pose[:3, :3] = handle.xmat.reshape(3, 3) @ axes
        pose[:3, 3] = handle.xpos
        return pose

    def rgb(self, camera: Camera) -> NDArray[np.uint8]:
        """Image, shape (size, size, 3), goal markers visible."""
        self._rgb.update_scene(self._data, camera=camera.mujoco_name)
        fine = _upright(self._rgb.render(), camera)
        size = len(fine) // SUPERSAMPLING
        blocks = fine.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
        image: NDArray[np.uint8] = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
        return image

    def depth_mm(self, camera: Camera) -> NDArray[np.uint16]:
        """Distance along the optical axis, shape (size, size, 1), millimeters, 0 where there is none."""
        self._depth.update_scene(self._data, camera=camera.mujoco_name, scene_option=self._matter_only)
        meters = _upright(self._depth.render(), camera)
        meters = np.where(meters < min(MAX_DEPTH_M, self._background_m), meters, 0)
        millimeters: NDArray[np.uint16] = np.rint(meters * 1000).astype(np.uint16)
        return millimeters[..., None]

    def close(self) -> None:
        self._rgb.close()
        self._depth.close()


def _renderer(model: Any, size: int) -> Any:
    import mujoco

    renderer = mujoco.Renderer(model, size, size)
    # A 4096-pixel shadow map costs more than everything else together on a CPU.
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer


def _upright(image: NDArray[Any], camera: Camera) -> NDArray[Any]:
    return (image[::-1, ::-1] if camera.half_turn else image).copy()
