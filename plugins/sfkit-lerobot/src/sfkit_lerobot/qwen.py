"""What the processors of the Qwen-VL family make of images: patches, in blocks that are merged into one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit_lerobot.letterbox import Size


@dataclass(frozen=True)
class Patches:
    """Sides of the patches of a vision tower.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches on each side of the block that becomes one token.
        frames: Frames in a patch; a still image is repeated.
    """

    patch: int
    merge: int
    frames: int

    @classmethod
    def of(cls, vision_config: Any) -> Patches:
        """Those of a ``vision_config``."""
        return cls(
            int(vision_config.patch_size), int(vision_config.spatial_merge_size), int(vision_config.temporal_patch_size)
        )

    def grid(self, view: Size) -> Size:
        """Rows and columns of tokens in a view."""
        side = self.patch * self.merge
        return view[0] // side, view[1] // side


def pictures_of(
    patches: Tensor, grid_thw: Tensor, sides: Patches, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """``(n, 3, h, w)`` in [0, 1]: the images that a processor cut into patches.

    Args:
        patches: ``pixel_values``, ``(n * rows * columns, 3 * frames * patch * patch)``.
        grid_thw: ``image_grid_thw``, ``(n, 3)``: frames, rows and columns of patches.
        sides: Of the patches.
        mean: What the processor subtracted.
        std: What it divided by.

    Raises:
        ViewsError: The images are of different sizes, or of several frames.
    """
    sizes = {tuple(size) for size in grid_thw.tolist()}
    if len(sizes) != 1 or next(iter(sizes))[0] != 1:
        raise ViewsError(
            f"The images have grids of {sorted(sizes)} patches (frames, rows, columns), expected one size and one "
            "frame.",
            "Let the processor bring all cameras to one size.",
        )
    _, rows, columns = next(iter(sizes))
    m, p = sides.merge, sides.patch
    blocks = patches.float().reshape(-1, rows // m, columns // m, m, m, 3, sides.frames, p, p)[:, :, :, :, :, :, 0]
    pictures = blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, rows * p, columns * p)
    shift, scale = (torch.tensor(list(values), device=patches.device).view(3, 1, 1) for values in (mean, std))
    return pictures * scale + shift
