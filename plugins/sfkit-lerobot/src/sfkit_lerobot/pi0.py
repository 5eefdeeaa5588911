"""pi0 (``lerobot.policies.pi0``) and its family: images in the middle of the view, a missing camera is a view too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfkit.errors import AdapterError
from sfkit_lerobot.letterbox import Letterbox, Size, pad_around
from sfkit_lerobot.normalization import Batch, refuse_out_of_range
from sfkit_lerobot.prefix import TokenLayout
from sfkit_lerobot.rotary import RotaryPrefixAdapter


class PI0Adapter(RotaryPrefixAdapter):
    """Sequence: the views that are there, then the missing ones (masked), then text."""

    name = "pi0"
    decoder_path = "model.paligemma_with_expert.paligemma.model.language_model"
    connector_path = "model.paligemma_with_expert.paligemma.model.multi_modal_projector"

    _range_is_checked = False

    def _read_policy(self) -> None:
        self.layout(self._view_size())

    def prepare(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        if not self._range_is_checked:
            self._check_range(batch)
            self._range_is_checked = True
        images, masks = self.policy._preprocess_images(batch)
        return images, masks

    @property
    def vision_config(self) -> Any:
        return self.policy.get_submodule("model.paligemma_with_expert.paligemma").config.vision_config

    def unfreeze_hint(self) -> str:
        return "train_expert_only=False" if hasattr(self.policy.config, "train_expert_only") else ""

    def letterbox(self, source: Size) -> Letterbox:
        return pad_around(source, self._view_size())

    def layout(self, view: Size) -> TokenLayout:
        patch = int(self.vision_config.patch_size)
        if view[0] % patch or view[1] % patch:
            raise AdapterError(
                f"{self.name} gets views of {view[0]}x{view[1]} pixels, which do not divide into patches of {patch}.",
                f"Set image_resolution to multiples of {patch}.",
            )
        return TokenLayout((view[0] // patch, view[1] // patch))

    def sequence_length(self, visual: int, text: int) -> int:
        return visual + text

    def _view_size(self) -> Size:
        h, w = self.policy.config.image_resolution
        return int(h), int(w)

    def _check_range(self, batch: Batch) -> None:
        """Look at the images before the policy clamps them: afterward the core's check cannot see what is wrong."""
        for key in self.policy.config.image_features:
            if key in batch:
                refuse_out_of_range(batch[key], key, self.name)
