"""VLA-JEPA (``lerobot.policies.vla_jepa``): a Qwen3-VL that makes its prompt in forward."""

from __future__ import annotations

import torch

from sfkit.errors import ViewsError
from sfkit_lerobot.image_geometry import ImageGeometry
from sfkit_lerobot.image_tokens import ImageTokenAdapter, Prompt, every
from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.normalization import Batch, visual_mode
from sfkit_lerobot.qwen import Patches, pictures_of


class VLAJEPAAdapter(ImageTokenAdapter):
    """The prompt is made again by the policy's own processor: all cameras in the order of ``config.image_features``.

    Of several time steps the first is the present one: the frames behind it are the future, for the world model. Its
    video encoder is not aligned. The residual stream includes what Qwen3-VL adds to visual tokens behind its first
    blocks (deepstack).
    """

    name = "vla_jepa"
    decoder_path = "model.qwen.model.model.language_model"
    present_frame = 0

    def unfreeze_hint(self) -> str:
        return "freeze_qwen=False"

    def prompt(self, batch: Batch) -> Prompt:
        names = list(self.policy.config.image_features)
        if visual_mode(self.policy.config) != "IDENTITY":
            raise ViewsError(
                "VLA-JEPA is given normalized images, which its own processor then normalizes again.",
                'Use normalization_mapping["VISUAL"] = IDENTITY, as is its default.',
            )
        model = self.policy.model
        given = self.policy._prepare_model_inputs(batch, training=False)
        inputs = model.qwen.build_inputs(
            images=given["images"],
            instructions=given["instructions"],
            action_prompt=model.replace_prompt,
            embodied_prompt=model.embodied_replace_prompt,
        )
        processor, config = model.qwen.processor.image_processor, model.qwen.model.config
        sides, ids = Patches.of(config.vision_config), inputs["input_ids"]
        pictures = pictures_of(
            inputs["pixel_values"], inputs["image_grid_thw"], sides, processor.image_mean, processor.image_std
        )
        view: Size = (pictures.shape[-2], pictures.shape[-1])
        sources = {name: (batch[name].shape[-2], batch[name].shape[-1]) for name in names}
        return Prompt(
            ids=ids,
            image_token=int(config.image_token_id),
            images=pictures.reshape(len(ids), len(names), *pictures.shape[1:]),
            grid=sides.grid(view),
            boxes={name: ImageGeometry.of(source).resized(view) for name, source in sources.items()},
            present=every(len(ids), len(names), torch.device(ids.device)),
        )
