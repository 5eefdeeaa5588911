"""From what a policy is given as pictures to views in [0, 1], and the checks that they are what was declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit.policies.generic.options import GenericOptions, MeanStd
from sfkit.policies.generic.paths import describe
from sfkit.views.resample import IMAGENET_MEAN, IMAGENET_STD

_HALF = (0.5, 0.5, 0.5)
#: The normalizations in use. For each: mean and deviation of ``(x - mean) / std``.
NORMALIZATIONS: Mapping[str, MeanStd] = {
    "[0,1]": MeanStd((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "[-1,1]": MeanStd(_HALF, _HALF),
    "imagenet": MeanStd(IMAGENET_MEAN, IMAGENET_STD),
    "clip": MeanStd((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "0-255": MeanStd((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
#: bfloat16 moves a normalized pixel by up to 0.45 / 255; resizing overshoots a little.
_SLACK = 0.02


def to_views(given: Any, options: GenericOptions) -> Tensor:
    """``(b, v, 3, h, w)`` as given, in the declared layout, not yet brought to [0, 1].

    Args:
        given: A tensor, a tuple of one tensor for each view, or lists of pictures for each sample.
        options: Layout, channels, grid and resize.

    Raises:
        ViewsError: It has not that layout, or not so many views.
    """
    pictures = _stacked(given, options)
    if pictures.shape[1] != options.grid[0]:
        raise ViewsError(
            f"The batch holds {pictures.shape[1]} pictures for each sample, grid={options.grid} says "
            f"{options.grid[0]}.",
            "Set grid=(views, rows, columns), and the layout of the pictures.",
        )
    if options.resize is not None and tuple(pictures.shape[-2:]) != options.resize:
        flat = pictures.flatten(0, 1).float()
        flat = F.interpolate(flat, options.resize, mode="bilinear", align_corners=False, antialias=True)
        pictures = flat.reshape(*pictures.shape[:3], *options.resize)
    return pictures


def _stacked(given: Any, options: GenericOptions) -> Tensor:
    if isinstance(given, tuple):
        return torch.stack([_color_views(part, options, views=1)[:, 0] for part in given], 1)
    if isinstance(given, list):
        return _from_lists(given)
    return _color_views(given, options, views=options.grid[0])


def _from_lists(given: list[Any]) -> Tensor:
    """``[sample][view]`` pictures (PIL images, arrays or tensors ``(h, w, 3)``), or ``[sample]`` with a single one."""
    rows = [row if isinstance(row, list | tuple) else [row] for row in given]
    pictures = [[torch.from_numpy(np.array(picture)) for picture in row] for row in rows]
    shapes = {tuple(picture.shape) for row in pictures for picture in row}
    counts = {len(row) for row in pictures}
    if len(shapes) != 1 or len(counts) != 1 or (shape := next(iter(shapes)))[-1:] != (3,) or len(shape) != 3:
        raise ViewsError(
            f"The lists hold {sorted(counts)} pictures of shapes {sorted(shapes)}.",
            "They must be as many for each sample, of one size (h, w, 3): pass a function as images that sees to it.",
        )
    return torch.stack([torch.stack(row) for row in pictures]).permute(0, 1, 4, 2, 3)


def _color_views(given: Any, options: GenericOptions, views: int) -> Tensor:
    if not isinstance(given, Tensor):
        raise ViewsError(
            f"The pictures are a {describe(given)}, not a tensor.",
            "Point images at a tensor, or pass a function that returns (b, v, 3, h, w).",
        )
    layout = options.layout or _plain_layout(given, views)
    pictures = _patches(given, options) if layout == "patches" else _arranged(given, layout, views)
    channels = options.channels or ((0, 1, 2) if pictures.shape[2] == 3 else None)
    if channels is None or max(channels) >= pictures.shape[2]:
        raise ViewsError(
            f"Pictures of shape {tuple(given.shape)}, read as {layout!r}, have {pictures.shape[2]} channels in a view.",
            "Set layout, or channels=(r, g, b) where a view has more than three.",
        )
    return pictures if channels == (0, 1, 2) and pictures.shape[2] == 3 else pictures[:, :, list(channels)]


def _plain_layout(given: Tensor, views: int) -> str:
    """The layout, where the shape leaves no doubt."""
    shape = tuple(given.shape)
    if len(shape) == 5 and shape[1] == views and (shape[2] == 3) != (shape[4] == 3):
        return "b v c h w" if shape[2] == 3 else "b v h w c"
    if len(shape) == 4 and views == 1 and (shape[1] == 3) != (shape[3] == 3):
        return "b c h w" if shape[1] == 3 else "b h w c"
    raise ViewsError(
        f"The axes of pictures {describe(given)} for {views} views are not clear.",
        "Set layout, for instance layout='(b v) c h w', or 'b (v c) h w'.",
    )


def _arranged(given: Tensor, layout: str, views: int) -> Tensor:
    """``(b, v, c, h, w)`` from a declared layout."""
    axes = 5 if layout in ("b v c h w", "b v h w c") else 4
    joined = {"b (v c) h w": 1, "(b v) c h w": 0, "(v b) c h w": 0}.get(layout)
    if given.ndim != axes or (joined is not None and given.shape[joined] % views):
        raise ViewsError(
            f"Pictures {describe(given)} do not have the layout {layout!r} with {views} views.",
            "Set layout to what the policy is really given.",
        )
    if layout == "b v h w c":
        return given.permute(0, 1, 4, 2, 3)
    if layout == "b h w c":
        return given.permute(0, 3, 1, 2).unsqueeze(1)
    if layout == "b c h w":
        return given.unsqueeze(1)
    h, w = given.shape[-2:]
    if layout == "b (v c) h w":
        return given.reshape(len(given), views, -1, h, w)
    if layout == "(b v) c h w":
        return given.reshape(-1, views, given.shape[1], h, w)
    if layout == "(v b) c h w":
        return given.reshape(views, -1, given.shape[1], h, w).transpose(0, 1)
    return given


def _patches(given: Tensor, options: GenericOptions) -> Tensor:
    """Pictures from flat patches ``(n, 3 * frames * p * p)``, as Qwen2-VL's image processor lays them out.

    Patches come in groups of ``merge x merge``, which become one visual token; each holds channels, frames, rows and
    columns in this order. A still picture is repeated for all frames, of which the first is taken.
    """
    views, rows, columns = options.grid
    m, t = options.merge, options.frames
    each = views * rows * columns * m * m
    side = round((given.shape[-1] / (3 * t)) ** 0.5)
    if given.ndim != 2 or given.shape[0] % each or 3 * t * side * side != given.shape[1]:
        raise ViewsError(
            f"Patches {describe(given)} do not make up {views} views of {rows}x{columns} tokens of {m}x{m} patches.",
            "Set grid to the size of the pictures that the processor makes, and merge and frames to its own.",
        )
    parts = given.reshape(-1, views, rows, columns, m, m, 3, t, side, side)[:, :, :, :, :, :, :, 0]
    return parts.permute(0, 1, 6, 2, 4, 7, 3, 5, 8).reshape(-1, views, 3, rows * m * side, columns * m * side)


def undo(pictures: Tensor, pixels: str | MeanStd | None) -> Tensor:
    """Pictures ``(b, v, 3, h, w)`` in float32 with their normalization undone, held within [0, 1]."""
    assert pixels is not None
    return _undone(pictures, NORMALIZATIONS[pixels] if isinstance(pixels, str) else pixels).clamp(0, 1)


def _undone(pictures: Tensor, by: MeanStd) -> Tensor:
    channels = zip(pictures.float().unbind(2), by.mean, by.std, strict=True)
    return torch.stack([channel * std + mean for channel, mean, std in channels], 2)


def check_pixels(pictures: Tensor, valid: Tensor, pixels: str | MeanStd | None) -> None:
    """Are the pictures normalized as declared? A teacher that is shown others has meaningless targets.

    Args:
        pictures: ``(b, v, 3, h, w)`` as the policy was given them.
        valid: ``(b, v, h, w)`` bool; other pixels are not looked at.
        pixels: What was declared.

    Raises:
        ViewsError: NaN, a range that cannot be what was declared, or one that another normalization explains better.
    """
    raw = pictures.float().permute(2, 0, 1, 3, 4).flatten(1)[:, valid.flatten()]
    if raw.shape[1] == 0:
        return
    if not bool(raw.isfinite().all()):
        raise ViewsError("The pictures contain NaN or infinity.", "Look at the dataset and at the image transforms.")
    low, high = raw.amin(1), raw.amax(1)
    fits = _fits(low, high, pictures.dtype)
    guess = _widest(fits)
    found = f"Pictures range from {float(low.min()):.3g} to {float(high.max()):.3g} ({pictures.dtype})"
    advice = f"That looks like pixels={guess!r}." if guess else "No normalization that sfkit knows fits: use MeanStd."
    if pixels is None:
        raise ViewsError(f"{found}, and how they are normalized is not declared.", f"Set pixels. {advice}")
    declared = fits.get(pixels) if isinstance(pixels, str) else _span(low, high, pixels, pictures.dtype)
    if declared is None:
        raise ViewsError(f"{found}, which is not pixels={pixels!r}.", advice)
    if guess is not None and guess != pixels and _explains_better(fits[guess], declared):
        raise ViewsError(
            f"{found}: by pixels={pixels!r} nothing in them is darker than {declared[0]:.2f} or brighter than "
            f"{declared[1]:.2f}, by {guess!r} they range from {fits[guess][0]:.2f} to {fits[guess][1]:.2f}.",
            f"{advice} If the declaration is right, try a batch with more contrast.",
        )


def likely_pixels(pictures: Tensor) -> str | None:
    """The known normalization by which pictures ``(b, v, 3, h, w)`` use most of their range; None if none fits."""
    raw = pictures.float().transpose(0, 2).flatten(1)
    return _widest(_fits(raw.amin(1), raw.amax(1), pictures.dtype))


def _fits(low: Tensor, high: Tensor, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    return {name: span for name, by in NORMALIZATIONS.items() if (span := _span(low, high, by, dtype))}


def _widest(fits: Mapping[str, tuple[float, float]]) -> str | None:
    return max(fits, key=lambda name: fits[name][1] - fits[name][0], default=None)


def _span(low: Tensor, high: Tensor, by: MeanStd, dtype: torch.dtype) -> tuple[float, float] | None:
    """Darkest and brightest value in [0, 1] if it was normalized so; None where that is impossible."""
    if dtype == torch.uint8 and by is not NORMALIZATIONS["0-255"]:
        return None
    mean, std = (torch.tensor(each, device=low.device) for each in (by.mean, by.std))
    darkest, brightest = float((low * std + mean).min()), float((high * std + mean).max())
    return (darkest, brightest) if darkest >= -_SLACK and brightest <= 1 + _SLACK else None


def _explains_better(other: tuple[float, float], declared: tuple[float, float]) -> bool:
    """A picture uses most of its range, or at least has something dark in it."""
    contrast, rival = declared[1] - declared[0], other[1] - other[0]
    return rival > 1.3 * contrast and (rival > 0.8 or declared[0] > 0.4)
