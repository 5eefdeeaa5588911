"""EVO1 (``lerobot.policies.evo1``): an InternVL3 with room for a fixed number of views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfkit.errors import ViewsError
from sfkit_lerobot.image_geometry import ImageGeometry
from sfkit_lerobot.image_tokens import ImageTokenAdapter, Prompt
from sfkit_lerobot.letterbox import Placement, Size
from sfkit_lerobot.normalization import Batch, refuse_out_of_range


class Evo1Adapter(ImageTokenAdapter):
    """The prompt is made again by the policy's own tokenizer.

    It has ``max_views`` places: first the cameras that are there, in the order of ``config.image_features``, then the
    missing ones (masked), then places without a camera. Images are stretched to a square, in 8 bits.
    """

    name = "evo1"
    decoder_path = "model.embedder.model.language_model"
    _range_is_checked = False

    def unfreeze_hint(self) -> str:
        return (
            'training_stage="stage2", or apply_training_stage_defaults=False with finetune_vlm=True and '
            "finetune_language_model=True or finetune_vision_model=True"
        )

    def prompt(self, batch: Batch) -> Prompt:
        embedder = self.policy.model.embedder
        pictures, places = self.policy._collect_image_batches(batch)
        boxes = self._boxes(batch, (int(embedder.image_size), int(embedder.image_size)), places.shape[1])
        if not self._range_is_checked:
            for key, picture in zip(boxes, pictures, strict=False):
                refuse_out_of_range(picture, key, "EVO1")
            self._range_is_checked = True
        images = self._as_resized(pictures, len(boxes))
        side = math.isqrt(int(embedder.num_image_token))
        if side * side != embedder.num_image_token:
            raise ViewsError(f"EVO1 makes {embedder.num_image_token} tokens of a view, which is no square.")
        return Prompt(
            ids=self._tokens(batch, places.shape),
            image_token=int(embedder.img_context_token_id),
            images=images,
            grid=(side, side),
            boxes=boxes,
            present=places[:, : len(boxes)],
            later=places.shape[1] - len(boxes),
        )

    def _boxes(self, batch: Batch, view: Size, places: int) -> dict[str, Placement | None]:
        keys = list(self.policy.config.image_features)[:places]
        boxes: dict[str, Placement | None] = {
            key: ImageGeometry.of((batch[key].shape[-2], batch[key].shape[-1])).resized(view)
            for key in keys
            if key in batch
        }
        return {**boxes, **{key: None for key in keys if key not in batch}}

    def _as_resized(self, pictures: Sequence[Tensor], views: int) -> Tensor:
        from lerobot.policies.evo1.internvl3_embedder import _batched_resize_01

        size = int(self.policy.model.embedder.image_size)
        resized = [_batched_resize_01(picture, size) for picture in pictures[:views]]
        resized += [torch.zeros_like(resized[0])] * (views - len(resized))
        return torch.stack(resized, 1)

    def _tokens(self, batch: Batch, places: Sequence[int]) -> Tensor:
        embedder, (b, count) = self.policy.model.embedder, places
        # One tile for each place, as EVO1 has it.
        prompts = embedder._build_multimodal_prompts([[1] * count] * b, self.policy._normalize_task_batch(batch))
        encoded = embedder.tokenizer(
            list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=embedder.max_text_length
        )
        ids: Tensor = encoded["input_ids"].to(embedder.device)
        return ids
