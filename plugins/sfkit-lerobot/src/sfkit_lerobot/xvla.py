"""X-VLA (``lerobot.policies.xvla``): Florence-2's encoder, which is shown the first view only."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import AdapterError, ViewsError
from sfkit.policies.base import TapPoint
from sfkit.registry.component import Harmless
from sfkit_lerobot.base import LeRobotOptions
from sfkit_lerobot.letterbox import Letterbox, Size, pad_top_left, unchanged
from sfkit_lerobot.normalization import Batch, denormalized
from sfkit_lerobot.prefix import PrefixAdapter, TokenLayout


class XVLAOptions(LeRobotOptions):
    """Options of the adapter of X-VLA."""

    imagenet: Harmless[bool] = Field(
        default=True,
        description="Whether the preprocessor normalizes images by ImageNet's values, as LeRobot's does.",
    )


class XVLAAdapter(PrefixAdapter):
    """Sequence of the encoder: a token for the whole first view, its patches, then text.

    The other views go around the encoder straight to the action transformer, and are not aligned. The first view is
    the first camera of ``config.image_features`` that is in the batch.

    The encoder is BART's, whose blocks end with a norm instead of beginning with one. Layer *k* is what block *k*
    returns, all the same Hugging Face's ``hidden_states[k]``, and the last one is what the action transformer reads.
    """

    name = "xvla"
    decoder_path = "model.vlm.language_model.encoder"
    Options: ClassVar[type[Options]] = XVLAOptions
    options: XVLAOptions
    _range_is_checked = False

    def tap(self, layer: int) -> TapPoint:
        if layer == self.num_layers:
            path = "model.transformer.vlm_proj"
            return TapPoint(self.policy.get_submodule(path), path)
        return TapPoint(self.decoder.layers[layer], f"{self.decoder_path}.layers.{layer}")

    def unfreeze_hint(self) -> str:
        return "freeze_language_encoder=False or freeze_vision_encoder=False"

    def prepare(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        images, masks = self.policy._prepare_images(batch)
        return [images[:, 0] * 2 - 1], [masks[:, 0]]

    def letterbox(self, source: Size) -> Letterbox:
        view = self.policy.config.resize_imgs_with_padding
        return unchanged(source) if view is None else pad_top_left(source, (int(view[0]), int(view[1])))

    def layout(self, view: Size) -> TokenLayout:
        side = math.prod(self.policy.get_submodule("model.vlm").config.vision_config.patch_stride)
        if view[0] % side or view[1] % side:
            raise AdapterError(
                f"X-VLA gets views of {view[0]}x{view[1]} pixels, which do not divide into tokens of {side} pixels.",
                f"Set resize_imgs_with_padding to multiples of {side}.",
            )
        return TokenLayout((view[0] // side, view[1] // side), before=1)

    def sequence_length(self, visual: int, text: int) -> int:
        return visual + text

    def _as_seen_by_the_camera(self, batch: Batch) -> Batch:
        batch = super()._as_seen_by_the_camera(batch)
        if not self.options.imagenet:
            return batch
        from lerobot.policies.xvla.processor_xvla import IMAGENET_STATS

        present = [key for key in self.policy.config.image_features if key in batch]
        if not self._range_is_checked:
            self._refuse_pictures_as_they_were(batch, present)
            self._range_is_checked = True
        stats = {name: _flat(IMAGENET_STATS[name]) for name in ("mean", "std")}
        return {**batch, **{key: denormalized(batch[key], "MEAN_STD", stats, key) for key in present}}

    def _refuse_pictures_as_they_were(self, batch: Batch, present: list[str]) -> None:
        """Images in [0, 1] would be taken for normalized ones, and come out gray without leaving the range."""
        if present and all(float(batch[key].min()) >= 0 and float(batch[key].max()) <= 1 for key in present):
            raise ViewsError(
                "All pixels of the batch are in [0, 1], which images normalized by ImageNet's values are not.",
                "Let the batch go through X-VLA's preprocessor, or, if it leaves images as they are, pass "
                'adapter=("xvla", {"imagenet": False}).',
            )


def _flat(values: Any) -> tuple[float, ...]:
    """One number for each channel, out of whatever nesting."""
    import torch

    return tuple(torch.as_tensor(values).flatten().tolist())
