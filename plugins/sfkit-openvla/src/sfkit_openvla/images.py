"""Images in [0, 1] from OpenVLA's ``pixel_values``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.views.resample import IMAGENET_MEAN, IMAGENET_STD

#: Largest mean difference of two halves of the same image. The released processors round their constants to bfloat16
#: (0.002), and the released loop rounds the pixels (0.001).
_SAME = 0.02
#: Gray level of the processor's letterbox, ``int(0.5 * 255)``, the same for both halves.
_FILL = 127 / 255
_NEAR = 1 / 255
_REMEDY = "Pass the output of the policy's own image processor, with the views concatenated on the channel axis."

Half = Literal["siglip", "dino"]


class Normalization(Options):
    """How a processor normalizes three channels, as in its ``tvf_normalize_params``."""

    mean: tuple[float, float, float] = Field(description="Of the images in [0, 1].")
    std: tuple[float, float, float] = Field(description="Divides what is left.")
    inplace: bool = Field(default=False, description="Torchvision's own, without effect here.")


_SIGLIP = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_IMAGENET = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def read_normalization(config: Any) -> tuple[Normalization, ...]:
    """The constants of the processor beside a policy's weights, which its ``preprocessor_config.json`` records.

    The released ones are rounded to bfloat16, and the released code undoes those; ImageNet's own would be 0.002 off.

    Args:
        config: Of the policy; ``_name_or_path`` is the folder or repository that it was loaded from.

    Raises:
        ConfigError: They cannot be read. Nothing is downloaded.
    """
    from transformers import ImageProcessingMixin

    place = str(getattr(config, "_name_or_path", "") or "")
    try:
        if not place:
            raise ValueError("the policy does not say where it was loaded from")
        record, _ = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=True)
        recorded = record.get("tvf_normalize_params")
        if not recorded:
            raise ValueError("preprocessor_config.json has no tvf_normalize_params")
        return tuple(Normalization.parse("tvf_normalize_params", item) for item in recorded)
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise ConfigError(
            f"The constants of the image processor beside {place or 'the policy'} could not be read: {error}",
            'teacher_images="dino" undoes them: give "normalization": processor.image_processor.tvf_normalize_params '
            'beside it, or leave teacher_images at "siglip".',
        ) from error


def to_images(
    pixel_values: object, views: int, *, fused: bool, half: Half, constants: Sequence[Normalization] | None = None
) -> Tensor:
    """Undo the processor's normalization.

    With a fused backbone each view has six channels: three for DINOv2, then three for SigLIP. The loop casts both to
    bfloat16, which costs SigLIP's half 0.25 gray levels and DINOv2's half 0.45.

    Args:
        pixel_values: ``(b, 6 * v, h, w)``, or ``(b, 3 * v, h, w)`` for SigLIP only if not fused.
        views: Images per sample.
        fused: Whether the backbone has two featurizers.
        half: The half to read.
        constants: The processor's, for each three channels; by default ImageNet's for DINOv2, and [-1, 1] for SigLIP.

    Returns:
        ``(b, v, 3, h, w)`` float32 in [0, 1].

    Raises:
        ViewsError: ``pixel_values`` is missing or no floating-point tensor.
        ShapeError: The shape does not fit the number of views.
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
    channels, dino = _by_view(pixel_values, views), fused and half == "dino"
    own = (constants or (_IMAGENET, _SIGLIP))[0 if dino else -1]
    # By scalars: a tensor of constants would have to be sent to the device, and waited for.
    parts = (channels[:, :, :3] if dino else channels[:, :, -3:]).unbind(2)
    return torch.stack([part * std + mean for part, mean, std in zip(parts, own.mean, own.std, strict=True)], 2)


def check_halves(pixel_values: Tensor, views: int, constants: Sequence[Normalization] | None = None) -> None:
    """Check that both halves of each view in ``(b, 6 * v, h, w)`` show the same image.

    A permuted layout (views interleaved, SigLIP first, raw pixels) has the right shape, and would give the teacher
    meaningless images.

    Raises:
        ViewsError: The halves of a view differ.
    """
    halves: tuple[Half, Half] = ("dino", "siglip")
    dino, siglip = (to_images(pixel_values, views, fused=True, half=half, constants=constants) for half in halves)
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
    """Pixels of the image, in views that upstream's processor has padded to a square.

    Bars are the rows or columns at the borders that have the processor's gray in every pixel. They may differ from
    image to image.

    Args:
        images: ``(b, v, 3, h, w)`` in [0, 1].

    Returns:
        ``(b, v, h, w)`` bool, False on bars.
    """
    gray = ((images - _FILL).abs() <= _NEAR).all(2)
    bars = torch.zeros_like(gray)
    for across in (2, 3):
        lines = gray.all(5 - across, keepdim=True)
        bars |= lines.cumprod(across).bool() | lines.flip(across).cumprod(across).flip(across).bool()
    return ~bars


def _by_view(pixel_values: Tensor, views: int) -> Tensor:
    """``(b, v * c, h, w)`` to ``(b, v, c, h, w)`` float32."""
    return pixel_values.float().reshape(len(pixel_values), views, -1, *pixel_values.shape[2:])
