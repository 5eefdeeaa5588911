"""Wall-X (``lerobot.policies.wall_x``): a Qwen2.5-VL that makes its prompt in forward."""

from __future__ import annotations

from sfkit.errors import ViewsError
from sfkit_lerobot.image_geometry import ImageGeometry
from sfkit_lerobot.image_tokens import ImageTokenAdapter, Prompt, every
from sfkit_lerobot.normalization import Batch, refuse_out_of_range, visual_mode
from sfkit_lerobot.qwen import Patches, pictures_of


class WallXAdapter(ImageTokenAdapter):
    """The prompt is made again by the policy itself: the cameras that are there, in the order of the configuration.

    A missing camera is not in the prompt. Images are brought to 256 pixels on their longer side, in 8 bits, and then
    stretched to multiples of 28: 9 x 9 tokens for a square.
    """

    name = "wall_x"
    decoder_path = "model.model"
    _range_is_checked = False

    def prompt(self, batch: Batch) -> Prompt:
        names = [name for name in self.policy.config.image_features if name in batch]
        self._check_pictures(batch, names)
        inputs = self.policy.preprocess_inputs(batch)
        model = self.policy.get_submodule("model")
        processor, sides = model.processor.image_processor, Patches.of(model.config.vision_config)
        pictures = pictures_of(
            inputs["pixel_values"], inputs["image_grid_thw"], sides, processor.image_mean, processor.image_std
        )
        ids, view = inputs["input_ids"], (pictures.shape[-2], pictures.shape[-1])
        sources = {name: (batch[name].shape[-2], batch[name].shape[-1]) for name in names}
        return Prompt(
            ids=ids,
            image_token=int(model.config.image_token_id),
            images=pictures.reshape(len(ids), len(names), *pictures.shape[1:]),
            grid=sides.grid(view),
            boxes={name: ImageGeometry.of(source).resized(view) for name, source in sources.items()},
            present=every(len(ids), len(names), ids.device),
        )

    def _check_pictures(self, batch: Batch, names: list[str]) -> None:
        if visual_mode(self.policy.config) != "IDENTITY":
            raise ViewsError(
                "Wall-X is given normalized images, which it turns into 8 bits as if they were in [0, 1].",
                'Use normalization_mapping["VISUAL"] = IDENTITY, as is its default.',
            )
        if not self._range_is_checked:
            for name in names:
                refuse_out_of_range(batch[name], name, "Wall-X")
            self._range_is_checked = True
