"""SmolVLA (``lerobot.policies.smolvla``): images in the lower right corner, pixel-shuffled tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfkit.errors import AdapterError
from sfkit_lerobot.letterbox import Letterbox, Size, pad_top_left, unchanged
from sfkit_lerobot.normalization import Batch
from sfkit_lerobot.prefix import TokenLayout
from sfkit_lerobot.rotary import RotaryPrefixAdapter


class SmolVLAAdapter(RotaryPrefixAdapter):
    """Sequence: the views, each with its markers if ``add_image_special_tokens``, then text, then the state.

    A missing camera is a view only for the first ``empty_cameras`` of them; the others are not in the sequence.
    """

    name = "smolvla"
    decoder_path = "model.vlm_with_expert.vlm.model.text_model"
    connector_path = "model.vlm_with_expert.vlm.model.connector"

    def _read_policy(self) -> None:
        view = self._view_size()
        if view is not None:
            self.layout(view)

    def prepare(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        images, masks = self.policy.prepare_images(batch)
        return images, masks

    @property
    def vision_config(self) -> Any:
        return self.policy.model.vlm_with_expert.vlm.model.vision_model.config

    def unfreeze_hint(self) -> str:
        return "train_expert_only=False or freeze_vision_encoder=False"

    def letterbox(self, source: Size) -> Letterbox:
        view = self._view_size()
        return unchanged(source) if view is None else pad_top_left(source, view)

    def layout(self, view: Size) -> TokenLayout:
        shuffle = int(self.policy.get_submodule(self.connector_path).scale_factor)
        patch = int(self.vision_config.patch_size)
        side = patch * shuffle
        if view[0] != view[1] or view[0] % side:
            raise AdapterError(
                f"SmolVLA gets views of {view[0]}x{view[1]} pixels. Its pixel shuffle takes the patches for a square "
                f"whose side is a multiple of {side} pixels; anything else it scrambles without an error.",
                f"Set resize_imgs_with_padding to a square of a multiple of {side} pixels.",
            )
        markers = (2, 1) if self.policy.config.add_image_special_tokens else (0, 0)
        return TokenLayout((view[0] // side, view[1] // side), *markers)

    def sequence_length(self, visual: int, text: int) -> int:
        state = 1
        return max(visual + text + state, int(self.policy.config.prefix_length))

    def _view_size(self) -> Size | None:
        """Height and width to which images are resized; None where they are left as they are."""
        target = self.policy.config.resize_imgs_with_padding
        # LeRobot keeps width and height here, in this order.
        return None if target is None else (int(target[1]), int(target[0]))
