"""Depth and calibration of the cameras whose pixels openpi's augmentation does not move."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit.views.cameras import CameraRig
from sfkit.views.geometry import Letterbox, Size, pad_around
from sfkit_openpi.pixels import moved

_KEEP_STILL = (
    "openpi crops and rotates every camera without 'wrist' in its name at random, inside forward (the branch "
    '`if "wrist" not in key` of models_pytorch/preprocessing_pytorch.py). Switch that off there, or use a teacher that '
    "needs images only."
)


class StillCameras:
    """Detects which cameras of a rig are not moved, in the first batch that shows it."""

    def __init__(self) -> None:
        self._moved: dict[str, bool] = {}

    @property
    def moved(self) -> tuple[str, ...]:
        """Cameras whose pixels are moved at random: depth and calibration do not fit them."""
        return tuple(key for key, yes in self._moved.items() if yes)

    def boxes(
        self, rig: CameraRig | None, images: Mapping[str, Tensor], seen: Tensor, present: Tensor, bars: Tensor
    ) -> dict[str, Letterbox | None]:
        """The letterbox of each camera; None where it is unknown or changes in each step.

        Args:
            rig: Calibration, with the size of the dataset's images.
            images: ``(b, 3, h, w)`` in [-1, 1], before augmentation.
            seen: ``(b, v, 3, h, w)`` in [0, 1].
            present: ``(b, v)`` bool.
            bars: ``(b, v)`` bool: images with black borders.

        Raises:
            ViewsError: The calibrated image size requires a letterbox, and the images have none.
        """
        boxes: dict[str, Letterbox | None] = dict.fromkeys(images)
        if rig is None:
            return boxes
        view: Size = (seen.shape[-2], seen.shape[-1])
        for column, (key, image) in enumerate(images.items()):
            if key not in rig.cameras:
                continue
            camera = rig.cameras[key]
            box = pad_around((camera.height, camera.width), view)
            if key not in self._moved:
                there = present[:, column]
                verdict = moved(image[there], seen[there, column]) if bool(there.any()) else None
                if verdict is None:
                    continue
                self._moved[key] = verdict
                if any(box.offset) and not bool(bars[there, column].all()):
                    raise ViewsError(
                        f"{key} is calibrated for {camera.height}x{camera.width} pixels, so its view of {view[0]}x"
                        f"{view[1]} should have black bars, and has none.",
                        "Calibrate for the images as ResizeImages gets them.",
                    )
            if not self._moved[key]:
                boxes[key] = box
        return boxes

    def explain(self, field: str, rig: CameraRig | None) -> str:
        """The reason why no view has a field, such as ``depth``."""
        if rig is None:
            return "No cameras were given to SpatialForcing.wrap: give it cameras=CameraRig(...)."
        if self.moved and self.moved == tuple(self._moved):
            return f"{', '.join(self.moved)}: the pixels are moved. {_KEEP_STILL}"
        if not self._moved:
            return f"The cameras given are {', '.join(rig.cameras)}; no image of them is in the batch."
        if field != "depth":
            return ""
        wanted = ", ".join(camera.depth_key for camera in rig.cameras.values() if camera.depth_key)
        return f"observation.images has no depth under {wanted}." if wanted else "No camera given has a depth_key."

    def warning(self) -> str:
        """Warning about cameras without depth and calibration; empty if there are none."""
        if not self.moved:
            return ""
        return f"depth and calibration of {', '.join(self.moved)} are left out: {_KEEP_STILL}"


def depth_maps(images: Mapping[str, object], rig: CameraRig) -> dict[str, Tensor]:
    """Depth maps by key, ``(b, h, w)`` or ``(b, 1, h, w)``; openpi's entries have the channel last."""
    keys = {camera.depth_key for camera in rig.cameras.values()}
    found = {key: value for key, value in images.items() if key in keys and isinstance(value, Tensor)}
    return {key: value[..., 0] if value.ndim == 4 and value.shape[-1] == 1 else value for key, value in found.items()}


def source_to_view(boxes: Mapping[str, Letterbox | None], present: Tensor, like: Tensor) -> Tensor | None:
    """``(b, v, 3, 3)`` for ``(b, v)`` present cameras; None while it is unknown for one of them."""
    known = torch.tensor([box is not None for box in boxes.values()], device=present.device)
    if not bool((known | ~present).all()):
        return None
    matrices = [torch.eye(3) if box is None else box.matrix for box in boxes.values()]
    return torch.stack(matrices).to(like.device).expand(len(like), -1, -1, -1)
