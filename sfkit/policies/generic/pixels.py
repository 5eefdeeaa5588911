"""From the images that a policy gets to views in [0, 1], and the checks of what was declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit.policies.generic.options import GenericOptions, MeanStd
from sfkit.policies.generic.paths import describe
from sfkit.views.resample import IMAGENET_MEAN, IMAGENET_STD

_HALF = (0.5, 0.5, 0.5)
#: The normalizations in use: mean and deviation of ``(x - mean) / std``.
NORMALIZATIONS: Mapping[str, MeanStd] = {
    "[0,1]": MeanStd((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "[-1,1]": MeanStd(_HALF, _HALF),
    "imagenet": MeanStd(IMAGENET_MEAN, IMAGENET_STD),
    "clip": MeanStd((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "0-255": MeanStd((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
#: For each layout the number of axes, and how a tensor with ``v`` views becomes ``(b, v, c, h, w)``.
_ARRANGED: Mapping[str, tuple[int, Callable[[Tensor, int], Tensor]]] = {
    "b v c h w": (5, lambda x, v: x),
    "b v h w c": (5, lambda x, v: x.permute(0, 1, 4, 2, 3)),
    "b c h w": (4, lambda x, v: x.unsqueeze(1)),
    "b h w c": (4, lambda x, v: x.permute(0, 3, 1, 2).unsqueeze(1)),
    "b (v c) h w": (4, lambda x, v: x.reshape(len(x), v, -1, *x.shape[2:])),
    "(b v) c h w": (4, lambda x, v: x.reshape(-1, v, *x.shape[1:])),
    "(v b) c h w": (4, lambda x, v: x.reshape(v, -1, *x.shape[1:]).transpose(0, 1)),
}
#: The axis of a layout that holds all views.
_JOINED = {"b (v c) h w": 1, "(b v) c h w": 0, "(v b) c h w": 0}
#: bfloat16 moves a normalized pixel by up to 0.45 / 255; resizing overshoots a little.
_SLACK = 0.02


def to_views(given: object, options: GenericOptions) -> Tensor:
    """``(b, v, 3, h, w)`` images in the declared layout, still with their normalization.

    Args:
        given: A tensor, a tuple of one tensor for each view, or lists of images for each sample.
        options: Layout, channels, grid and resize.

    Raises:
        ViewsError: It has another layout or another number of views.
    """
    if isinstance(given, tuple):
        images = torch.stack([_color_views(part, options, views=1)[:, 0] for part in given], 1)
    elif isinstance(given, list):
        images = _from_lists(given)
    else:
        images = _color_views(given, options, views=options.grid[0])
    if images.shape[1] != options.grid[0]:
        raise ViewsError(
            f"The batch holds {images.shape[1]} images for each sample, grid={options.grid} says {options.grid[0]}.",
            "Set grid=(views, rows, columns), and the layout of the images.",
        )
    if options.resize is not None and tuple(images.shape[-2:]) != options.resize:
        flat = images.flatten(0, 1).float()
        flat = F.interpolate(flat, options.resize, mode="bilinear", align_corners=False, antialias=True)
        images = flat.reshape(*images.shape[:3], *options.resize)
    return images


def _from_lists(given: Sequence[object]) -> Tensor:
    """``[sample][view]`` images (PIL images, arrays or tensors ``(h, w, 3)``), or ``[sample]`` with a single one."""
    rows = [row if isinstance(row, list | tuple) else [row] for row in given]
    images = [[torch.from_numpy(np.array(image)) for image in row] for row in rows]
    shapes = {tuple(image.shape) for row in images for image in row}
    counts = {len(row) for row in images}
    if len(shapes) != 1 or len(counts) != 1 or (shape := next(iter(shapes)))[-1:] != (3,) or len(shape) != 3:
        raise ViewsError(
            f"The lists hold {sorted(counts)} images of shapes {sorted(shapes)}.",
            "Each sample needs the same number, of one size (h, w, 3): pass a function as images that returns them so.",
        )
    return torch.stack([torch.stack(row) for row in images]).permute(0, 1, 4, 2, 3)


def _color_views(given: object, options: GenericOptions, views: int) -> Tensor:
    if not isinstance(given, Tensor):
        raise ViewsError(f"The images are a {describe(given)}, not a tensor.", "Pass a function that returns one.")
    layout = options.layout or _plain_layout(given, views)
    images = _patches(given, options) if layout == "patches" else _arranged(given, layout, views)
    channels = options.channels or ((0, 1, 2) if images.shape[2] == 3 else None)
    if channels is None or max(channels) >= images.shape[2]:
        raise ViewsError(
            f"Images of shape {tuple(given.shape)}, read as {layout!r}, have {images.shape[2]} channels in a view.",
            "Set layout, or channels=(r, g, b) where a view has more than three.",
        )
    return images if channels == (0, 1, 2) and images.shape[2] == 3 else images[:, :, list(channels)]


def _plain_layout(given: Tensor, views: int) -> str:
    """The layout, where the shape is unambiguous: ``(b, v, 3, h, w)`` or ``(b, v, h, w, 3)``, or one without ``v``."""
    shape = tuple(given.shape)
    if len(shape) == 5 and shape[1] == views and (shape[2] == 3) != (shape[4] == 3):
        return "b v c h w" if shape[2] == 3 else "b v h w c"
    if len(shape) == 4 and views == 1 and (shape[1] == 3) != (shape[3] == 3):
        return "b c h w" if shape[1] == 3 else "b h w c"
    raise ViewsError(f"The axes of images {describe(given)} for {views} views are not clear.", "Set layout.")


def _arranged(given: Tensor, layout: str, views: int) -> Tensor:
    """``(b, v, c, h, w)`` from a declared layout."""
    axes, arrange = _ARRANGED[layout]
    if given.ndim != axes or (layout in _JOINED and given.shape[_JOINED[layout]] % views):
        raise ViewsError(f"Images {describe(given)} do not have layout {layout!r} with {views} views.", "Set layout.")
    return arrange(given, views)


def _patches(given: Tensor, options: GenericOptions) -> Tensor:
    """Images from flat patches ``(n, 3 * frames * p * p)``, as Qwen2-VL's image processor lays them out.

    Patches come in groups of ``merge x merge``, which become one visual token; each holds channels, frames, rows and
    columns in this order. A still image is repeated for all frames, of which the first is taken.
    """
    views, rows, columns = options.grid
    m, t = options.merge, options.frames
    each = views * rows * columns * m * m
    side = round((given.shape[-1] / (3 * t)) ** 0.5)
    if given.ndim != 2 or given.shape[0] % each or 3 * t * side * side != given.shape[1]:
        raise ViewsError(
            f"Patches {describe(given)} do not make up {views} views of {rows}x{columns} tokens of {m}x{m} patches.",
            "Set grid to the size of the images that the processor makes, and merge and frames to its own.",
        )
    parts = given.reshape(-1, views, rows, columns, m, m, 3, t, side, side)[:, :, :, :, :, :, :, 0]
    return parts.permute(0, 1, 6, 2, 4, 7, 3, 5, 8).reshape(-1, views, 3, rows * m * side, columns * m * side)


def undo(images: Tensor, pixels: str | MeanStd | None) -> Tensor:
    """``(b, v, 3, h, w)`` in float32 without their normalization, clamped to [0, 1]."""
    assert pixels is not None  # check_pixels refuses it
    by = NORMALIZATIONS[pixels] if isinstance(pixels, str) else pixels
    # By scalars: a tensor of constants would have to be sent to the device, and waited for.
    channels = zip(images.float().unbind(2), by.mean, by.std, strict=True)
    return torch.stack([channel * std + mean for channel, mean, std in channels], 2).clamp(0, 1)


def check_pixels(images: Tensor, valid: Tensor, pixels: str | MeanStd | None) -> None:
    """Check the declared normalization: a teacher that sees wrong pixels gives meaningless targets.

    Args:
        images: ``(b, v, 3, h, w)`` as the policy gets them.
        valid: ``(b, v, h, w)`` bool; other pixels are ignored.
        pixels: The declared normalization.

    Raises:
        ViewsError: NaN, a range that contradicts the declaration, or one that another normalization explains better.
    """
    raw = images.float().permute(2, 0, 1, 3, 4).flatten(1)[:, valid.flatten()]
    # All views of the batch may be absent.
    if raw.shape[1] == 0:
        return
    if not bool(raw.isfinite().all()):
        raise ViewsError("The images contain NaN or infinity.", "Check the dataset and the image transforms.")
    low, high = raw.amin(1), raw.amax(1)
    fits = _fits(low, high, images.dtype)
    guess = _widest(fits)
    observed = f"Images range from {float(low.min()):.3g} to {float(high.max()):.3g} ({images.dtype})"
    advice = f"That looks like pixels={guess!r}." if guess else "No normalization that sfkit knows fits: use MeanStd."
    if pixels is None:
        raise ViewsError(f"{observed}, and how they are normalized is not declared.", f"Set pixels. {advice}")
    declared = fits.get(pixels) if isinstance(pixels, str) else _span(low, high, pixels, images.dtype)
    if declared is None:
        raise ViewsError(f"{observed}, which is not pixels={pixels!r}.", advice)
    if guess is not None and guess != pixels and _explains_better(fits[guess], declared):
        raise ViewsError(
            f"{observed}: by pixels={pixels!r} nothing in them is darker than {declared[0]:.2f} or brighter than "
            f"{declared[1]:.2f}, by {guess!r} they range from {fits[guess][0]:.2f} to {fits[guess][1]:.2f}.",
            f"{advice} If the declaration is right, try a batch with more contrast.",
        )


def likely_pixels(images: Tensor) -> str | None:
    """The known normalization by which images ``(b, v, 3, h, w)`` use most of their range; None if none fits."""
    raw = images.float().transpose(0, 2).flatten(1)
    return _widest(_fits(raw.amin(1), raw.amax(1), images.dtype))


def _fits(low: Tensor, high: Tensor, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Range in [0, 1] by each normalization that fits, from the extremes ``(3,)`` of each channel."""
    return {name: span for name, by in NORMALIZATIONS.items() if (span := _span(low, high, by, dtype))}


def _widest(fits: Mapping[str, tuple[float, float]]) -> str | None:
    return max(fits, key=lambda name: fits[name][1] - fits[name][0], default=None)


def _span(low: Tensor, high: Tensor, by: MeanStd, dtype: torch.dtype) -> tuple[float, float] | None:
    """Darkest and brightest value in [0, 1], from extremes ``(3,)``; None where ``by`` is impossible."""
    if dtype == torch.uint8 and by is not NORMALIZATIONS["0-255"]:
        return None
    mean, std = (torch.tensor(each, device=low.device) for each in (by.mean, by.std))
    darkest, brightest = float((low * std + mean).min()), float((high * std + mean).max())
    return (darkest, brightest) if darkest >= -_SLACK and brightest <= 1 + _SLACK else None


def _explains_better(other: tuple[float, float], declared: tuple[float, float]) -> bool:
    """An image uses most of its range, or at least has something dark in it."""
    contrast, rival = declared[1] - declared[0], other[1] - other[0]
    return rival > 1.3 * contrast and (rival > 0.8 or declared[0] > 0.4)
