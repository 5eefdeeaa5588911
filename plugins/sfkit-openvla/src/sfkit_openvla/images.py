"""From OpenVLA's ``pixel_values`` back to the images that the student saw."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from sfkit.errors import ShapeError, ViewsError
from sfkit.views.imagenet import imagenet_normalized

#: Mean difference of the two halves of an image above which they cannot show the same. Their constants are rounded
#: to bfloat16 in the released processors (0.002), and so are pixels in the released loop (0.001).
_SAME = 0.02
#: What the processor pads a letterbox with: ``int(0.5 * 255)``, for both halves alike.
_FILL = 127 / 255
_NEAR = 1 / 255
_REMEDY = "Pass what the policy's own image processor makes, the views one after another on the channel axis."

Half = Literal["siglip", "dino"]


def to_images(pixel_values: Any, views: int, *, fused: bool, half: Half) -> Tensor:
    """Undo the processor: ``(b, v, 3, h, w)`` float32 in [0, 1].

    Of a fused backbone each view has six channels: three normalized with ImageNet's mean and deviation for DINOv2, then
    three to [-1, 1] for SigLIP. The second half loses less in the loop's cast to bfloat16: 0.25 of a gray level, where
    the first loses 0.45.

    Args:
        pixel_values: ``(b, 6 v, h, w)``, or ``(b, 3 v, h, w)`` if not fused (SigLIP's half alone).
        views: Images of a sample.
        fused: Whether the backbone has two featurizers.
        half: Which one to read.

    Raises:
        ViewsError: There are none, or not as one tensor.
        ShapeError: Another layout.
    """
    each = 6 if fused else 3
    if pixel_values is None:
        raise ViewsError(
            "This batch has no images: pixel_values is None.",
            "Train on batches with images, or call the policy inside SpatialForcing.disabled(policy) for this one.",
        )
    if not isinstance(pixel_values, Tensor):
        raise ViewsError(f"pixel_values is a {type(pixel_values).__name__}, expected a tensor.", _REMEDY)
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 4 or shape[1] != each * views:
        found = f", which would be {shape[1] / each:g} views" if pixel_values.ndim == 4 else ""
        raise ShapeError(
            f"pixel_values has shape {shape}{found}; a policy set to {views} of {each} channels takes "
            f"(b, {each * views}, h, w).",
            f"{_REMEDY} The policy's count is set by vision_backbone.set_num_images_in_input(n).",
        )
    if not pixel_values.is_floating_point():
        raise ViewsError(f"pixel_values is {pixel_values.dtype}, expected normalized floating-point pixels.", _REMEDY)
    channels = _by_view(pixel_values, views)
    return _undo_imagenet(channels[:, :, :3]) if fused and half == "dino" else channels[:, :, -3:] * 0.5 + 0.5


def check_halves(pixel_values: Tensor, views: int) -> None:
    """Both halves of each view of a fused backbone must show one image.

    A permuted layout (views interleaved, SigLIP first, raw pixels) is a valid tensor of the right shape, and gives a
    teacher images that mean nothing.

    Raises:
        ViewsError: They do not.
    """
    dino, siglip = (to_images(pixel_values, views, fused=True, half=half) for half in ("dino", "siglip"))
    apart = (dino - siglip).abs().mean((0, 2, 3, 4))
    for view, difference in enumerate(apart.tolist()):
        if not difference <= _SAME:
            own = _by_view(pixel_values, views)[:, view]
            ranges = [f"{part.min():.3g} to {part.max():.3g}" for part in (own[:, :3], own[:, 3:])]
            raise ViewsError(
                f"The two halves of view {view} of pixel_values do not show one image: after undoing ImageNet's "
                f"normalization of channels 0-2 (found {ranges[0]}) and SigLIP's of channels 3-5 (found {ranges[1]}) "
                f"they differ by {difference:.3g} on average.",
                f"{_REMEDY} Another processor than the released ones: option verify_images=false.",
            )


def inside_bars(images: Tensor) -> Tensor:
    """Where an image is, in a view that upstream's processor has padded to a square: ``(b, v, h, w)`` bool.

    Bars are the lines along opposite borders that are of the processor's gray throughout. Each image has its own.

    Args:
        images: ``(b, v, 3, h, w)`` in [0, 1].
    """
    gray = ((images - _FILL).abs() <= _NEAR).all(2)
    bars = torch.zeros_like(gray)
    for across in (2, 3):
        lines = gray.all(5 - across, keepdim=True)
        bars |= lines.cumprod(across).bool() | lines.flip(across).cumprod(across).flip(across).bool()
    return ~bars


def _by_view(pixel_values: Tensor, views: int) -> Tensor:
    return pixel_values.float().reshape(len(pixel_values), views, -1, *pixel_values.shape[2:])


def _undo_imagenet(channels: Tensor) -> Tensor:
    zero, one = (imagenet_normalized(torch.full((3, 1, 1), value, device=channels.device)) for value in (0.0, 1.0))
    return (channels - zero) / (one - zero)
