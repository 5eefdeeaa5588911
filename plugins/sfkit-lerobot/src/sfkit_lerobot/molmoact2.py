"""MolmoAct2 (``lerobot.policies.molmoact2``): a Molmo whose prompt the preprocessor has made."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from sfkit.config import Options
from sfkit.errors import AdapterError, ViewsError
from sfkit.policies.base import TapPoint
from sfkit.registry.component import Harmless
from sfkit_lerobot.base import LeRobotOptions
from sfkit_lerobot.image_geometry import ImageGeometry
from sfkit_lerobot.image_tokens import ImageTokenAdapter, Prompt, every
from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.normalization import Batch, refuse_out_of_range, visual_mode

#: How much farther from a view its own camera's image may be than another one's: cameras may see the same.
_FACTOR, _ROUNDING = 2.0, 0.01


class MolmoAct2Options(LeRobotOptions):
    """Options of the adapter of MolmoAct2."""

    views: Harmless[tuple[str, ...]] = Field(
        default=(), description="Cameras in the order of the prompt; by default that of LeRobot's preprocessor."
    )


class MolmoAct2Adapter(ImageTokenAdapter):
    """The batch holds the prompt and the patches; the views are put together again from the patches.

    An image is stretched to a square, in 8 bits. Where its patches are an odd number (the released checkpoints have 27
    in a row, two of which make a token), the last row and column of tokens are half empty: the view is padded by a
    patch there, and these tokens are masked. Of an image that is shown whole and in crops
    (``crop_mode="overlap-and-resize"``), the tokens of the whole are aligned.
    """

    name = "molmoact2"
    Options: ClassVar[type[Options]] = MolmoAct2Options
    options: MolmoAct2Options

    _pictures_are_checked = False

    def _read_policy(self) -> None:
        # LeRobot's own LoRA (enable_lora_vlm) has put a model around the model.
        inner = "base_model.model." if hasattr(self.policy.model, "peft_config") else ""
        self.decoder_path = f"model.{inner}model.transformer"
        config = self.policy.config
        self._names = self.options.views or tuple(config.image_keys or config.image_features)
        unknown = [name for name in self._names if name not in config.image_features]
        if unknown:
            raise AdapterError(
                f"MolmoAct2 has no camera {', '.join(unknown)}.", f"Its cameras are {', '.join(config.image_features)}."
            )

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def num_layers(self) -> int:
        return len(self.decoder.blocks)

    def tap(self, layer: int) -> TapPoint:
        if layer == self.num_layers:
            return TapPoint(self.decoder.ln_f, f"{self.decoder_path}.ln_f")
        # The block and not its first norm, which comes behind the attention in some checkpoints (norm_after).
        return TapPoint(self.decoder.blocks[layer], f"{self.decoder_path}.blocks.{layer}")

    def unfreeze_hint(self) -> str:
        return "train_action_expert_only=False"

    # --------------------------------------------------------------------------------------------------- views

    def prompt(self, batch: Batch) -> Prompt:
        if "pixel_values" not in batch:
            raise ViewsError(
                "The batch has no pixel_values: it did not go through MolmoAct2's preprocessor.",
                "Call make_molmoact2_pre_post_processors, as lerobot-train does.",
            )
        ids, shown = batch["input_ids"], batch["image_grids"].tolist()
        b, v = len(ids), len(self._names)
        if len(shown) != b * v:
            raise self._unlike_the_prompt(f"{b} samples show {len(shown)} images, not {b} of each")
        grid: Size = (shown[0][0], shown[0][1])
        patches = _Patches.of(self.policy.model.config.vit_config, grid, batch["image_token_pooling"].shape[-1])
        crops = batch["image_num_crops"]
        images = patches.pictures(batch["pixel_values"].index_select(0, crops.cumsum(0) - crops))
        images = images.reshape(b, v, *images.shape[1:])
        if not self._pictures_are_checked:
            self._check_pictures(batch, images)
            self._pictures_are_checked = True
        return Prompt(
            ids=ids,
            image_token=int(self.policy.model.config.image_patch_id),
            images=patches.padded(images),
            grid=grid,
            boxes={
                name: patches.image_geometry((batch[name].shape[-2], batch[name].shape[-1])) for name in self._names
            },
            present=every(b, v, ids.device),
            behind=tuple(high * wide for _, _, high, wide in shown[:v]),
        )

    def _check_pictures(self, batch: Batch, images: Tensor) -> None:
        """Compare views ``(b, v, 3, h, w)`` once with the images in the batch, which are unchanged."""
        if visual_mode(self.policy.config) != "IDENTITY":
            raise ViewsError(
                "MolmoAct2 is given normalized images, which its preprocessor turns into 8 bits as if they were in "
                "[0, 1].",
                'Use normalization_mapping["VISUAL"] = IDENTITY, as is its default.',
            )
        raw = [batch[name].float() for name in self._names]
        for name, picture in zip(self._names, raw, strict=True):
            refuse_out_of_range(picture, name, "MolmoAct2")
        made = torch.stack([functional.interpolate(picture, images.shape[-2:], mode="bilinear") for picture in raw], 1)
        apart = (images[:, :, None] - made[:, None]).abs().mean((0, 3, 4, 5))
        if bool((apart.diagonal() > _FACTOR * apart.min(1).values + _ROUNDING).any()):
            order = ", ".join(self._names[index] for index in apart.argmin(1).tolist())
            raise self._unlike_the_prompt(f"the images look like those of {order}")

    def _unlike_the_prompt(self, found: str) -> ViewsError:
        return ViewsError(
            f"The views are taken to be {', '.join(self._names)}, but in the prompts {found}.",
            'Name the cameras in the prompt, in its order: adapter=("molmoact2", {"views": [...]}).',
        )


class _Patches:
    """The patches of an image, and those that are pooled into one token.

    Args:
        count: Rows and columns of patches.
        side: Of a patch in pixels.
        grid: Rows and columns of tokens.
        pooled: Rows and columns of patches in a token.
    """

    def __init__(self, count: Size, side: int, grid: Size, pooled: Size) -> None:
        self._count, self._side = count, side
        self._view = (grid[0] * pooled[0] * side, grid[1] * pooled[1] * side)
        # MolmoAct2 puts the missing half behind; of an odd number the greater part.
        self._corner = tuple((whole // side - n) // 2 * side for whole, n in zip(self._view, count, strict=True))

    @classmethod
    def of(cls, vision_config: Any, grid: Size, in_token: int) -> _Patches:
        """Those of a ``vit_config``, when so many patches make a token of this grid."""
        rows, columns = vision_config.image_num_patch
        for high in range(1, in_token + 1):
            wide = in_token // high
            if high * wide == in_token and (-(-rows // high), -(-columns // wide)) == grid:
                return cls((rows, columns), int(vision_config.image_patch_size), grid, (high, wide))
        raise ViewsError(
            f"MolmoAct2 makes {grid[0]}x{grid[1]} tokens of {rows}x{columns} patches, {in_token} to a token: no whole "
            "rows and columns of patches."
        )

    def pictures(self, pixels: Tensor) -> Tensor:
        """``(n, 3, h, w)`` in [0, 1] of ``(n, patches, side * side * 3)``, which the policy takes to be in [-1, 1]."""
        (rows, columns), p = self._count, self._side
        blocks = pixels.float().reshape(-1, rows, columns, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        return (blocks.reshape(-1, 3, rows * p, columns * p) + 1) / 2

    def padded(self, images: Tensor) -> Tensor:
        """``(b, v, 3, h, w)`` with room for whole tokens."""
        (top, left), (h, w) = self._corner, images.shape[-2:]
        return functional.pad(images, (left, self._view[1] - w - left, top, self._view[0] - h - top))

    def image_geometry(self, source: Size) -> ImageGeometry:
        """How an image of this size became the view."""
        size = (self._count[0] * self._side, self._count[1] * self._side)
        return ImageGeometry.of(source).resized(size).placed(self._view, *self._corner)
