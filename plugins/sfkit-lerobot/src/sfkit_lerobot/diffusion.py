"""Diffusion Policy (``lerobot.policies.diffusion``): feature maps of a ResNet, before they become key points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfkit.errors import ShapeError
from sfkit.policies.base import ForwardCall, TapPoint
from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.resnet import Crop, ResNetAdapter, size_of

if TYPE_CHECKING:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionRgbEncoder

#: Where the first of the four stages stands in the backbone, behind convolution, normalization, ReLU and pooling.
_FIRST = 4
_STAGES = 4


class DiffusionAdapter(ResNetAdapter):
    """Layer k is the feature map after k of the ResNet's four stages (0: after its stem). The last observation counts.

    Random crops are made inside the policy's forward. They are read there, so that the teacher is shown the same piece.
    """

    name = "diffusion"

    @property
    def num_layers(self) -> int:
        return _STAGES

    @property
    def _encoders(self) -> list[DiffusionRgbEncoder]:
        """One for each camera, or one for all."""
        encoder = self.policy.diffusion.rgb_encoder
        return list(encoder) if isinstance(encoder, nn.ModuleList) else [encoder]

    def dim(self, layer: int) -> int:
        backbone = self._encoders[0].backbone
        if layer == 0:
            return int(backbone[0].out_channels)
        convolutions = [
            module for module in backbone[_FIRST + layer - 1][-1].children() if isinstance(module, nn.Conv2d)
        ]
        return int(convolutions[-1].out_channels)

    def tap(self, layer: int) -> TapPoint:
        def following(encoder: DiffusionRgbEncoder) -> nn.Module:
            module: nn.Module = encoder.pool if layer == _STAGES else encoder.backbone[_FIRST + layer]
            return module

        first, *others = (following(encoder) for encoder in self._encoders)
        name = "pool" if layer == _STAGES else f"backbone.{_FIRST + layer}"
        return TapPoint(first, f"diffusion.rgb_encoder.*.{name}", extra_modules=tuple(others))

    def stride(self, layer: int) -> int:
        return int(4 * 2 ** max(0, layer - 1))

    # --------------------------------------------------------------------------------------------------- views

    def extra_hooks(self) -> Mapping[str, TapPoint]:
        return {
            f"crop.{index}": TapPoint(encoder, f"diffusion.rgb_encoder.{index}", extract=origin_of_crop)
            for index, encoder in enumerate(self._encoders)
        }

    def resized(self, picture: Tensor) -> Tensor:
        """``(b, 3, h, w)`` after the encoder's own resize."""
        resize = self._encoders[0].resize
        return picture if resize is None else resize(picture)

    def crops(self, pictures: Mapping[str, Tensor], stride: int, call: ForwardCall) -> dict[str, Crop]:
        shared = len(self._encoders) == 1
        crops = {}
        for index, (key, picture) in enumerate(pictures.items()):
            resized = tuple(self.policy.config.resize_shape or size_of(picture))
            size = tuple(self.policy.config.crop_shape or resized)
            (origin,) = call.inputs[f"crop.{0 if shared else index}"]
            crops[key] = Crop.make(size_of(picture), resized, origin, size, stride)
        return crops

    # -------------------------------------------------------------------------------------------------- tokens

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """Maps ``(b * steps * v, d, gh, gw)`` to tokens ``(b, v, gh, gw, d)`` of the last step."""
        (b, v), steps = views.images.shape[:2], int(self.policy.config.n_obs_steps)
        if hidden.ndim != 4 or len(hidden) != b * v * steps:
            raise ShapeError(
                f"The encoder of {type(self.policy).__name__} gave {tuple(hidden.shape)}, expected {b * v * steps} "
                f"maps: {b} samples, {steps} steps, {v} views.",
                "This version of LeRobot encodes its images in another way: the adapter must be changed.",
            )
        maps = hidden.permute(0, 2, 3, 1)
        if len(self._encoders) == 1:
            maps = maps.reshape(b, steps, v, *maps.shape[1:])[:, -1]
        else:
            maps = maps.reshape(v, b, steps, *maps.shape[1:])[:, :, -1].transpose(0, 1)
        return FeatureMap(maps, views.token_mask((maps.shape[2], maps.shape[3])))


def origin_of_crop(encoder: DiffusionRgbEncoder, picture: Tensor) -> Size:
    """Where LeRobot's image encoder is about to cut, once it has resized: ``(row, column)``.

    A random crop of ``torchvision`` draws these numbers, as the next ones from the CPU's generator; they are put back.
    """
    if not encoder.do_crop:
        return 0, 0
    if encoder.training and hasattr(encoder.maybe_random_crop, "get_params"):
        crop, resized = encoder.maybe_random_crop, _resized(encoder, picture)
        before = torch.get_rng_state()
        try:
            row, column, _, _ = crop.get_params(resized, crop.size)
        finally:
            torch.set_rng_state(before)
        return int(row), int(column)
    (h, w), (rows, columns) = size_of(_resized(encoder, picture)), encoder.center_crop.size
    # As torchvision rounds, half to even.
    return round((h - rows) / 2), round((w - columns) / 2)


def _resized(encoder: DiffusionRgbEncoder, picture: Tensor) -> Tensor:
    """A tensor of the size of ``(b, 3, h, w)`` after the policy's resize; its values do not matter."""
    return picture if encoder.resize is None else picture.new_empty(1, 1, *encoder.resize.size)
