"""A text policy for the core alone, and vision-language models of transformers, tiny and real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit import GenericAdapter, ImageTokens
from sfkit.testing.tiny import Block

IMAGE_ID, PAD_ID = 99, 0
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TextPolicy(nn.Module):
    """Text with image tokens in it, blocks that are called, and a dictionary with the loss."""

    def __init__(self, dim: int = 16, patch: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(100, dim)
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.layers = nn.ModuleList(Block(dim) for _ in range(3))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 3)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        hidden = self.words(batch["input_ids"])
        visual = self.embed(batch["pixel_values"].flatten(0, 1)).flatten(2).transpose(1, 2)
        where = batch["input_ids"] == IMAGE_ID
        hidden = hidden.masked_scatter(where.unsqueeze(-1), visual)
        attend = (batch["input_ids"] != PAD_ID)[:, None].expand(-1, hidden.shape[1], -1)
        attend = attend | torch.eye(hidden.shape[1], dtype=torch.bool)
        for layer in self.layers:
            hidden = layer(hidden, attend)
        return {"action_loss": (self.head(self.norm(hidden).mean(1)) - batch["action"]).square().mean()}


def texts(lengths: tuple[int, ...], images: int, padding: str, before: int = 1) -> Tensor:
    """Token ids: ``before`` words, the image tokens, the rest of the words; padded on a side."""
    rows = []
    for length in lengths:
        words = list(range(1, length + 1))
        rows.append(words[:before] + [IMAGE_ID] * images + words[before:])
    longest = max(map(len, rows))
    pads = [[PAD_ID] * (longest - len(row)) for row in rows]
    return torch.tensor([pad + row if padding == "left" else row + pad for row, pad in zip(rows, pads, strict=True)])


@dataclass
class Case:
    """A policy, its adapter, and how images ``(b, v, 3, h, w)`` in [0, 1] become its batch."""

    policy: nn.Module
    adapter: GenericAdapter
    pack: Callable[[Tensor], Tensor]
    ids: Tensor
    grid: tuple[int, int, int]
    size: tuple[int, int]
    stats: tuple[tuple[float, ...], tuple[float, ...]] = HALF
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        views = self.grid[0]
        generator = torch.Generator().manual_seed(1)
        self.pictures = torch.rand(len(self.ids), views, 3, *self.size, generator=generator)

    def batch(self, pictures: Tensor | None = None) -> dict[str, Any]:
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in self.stats)
        normalized = ((self.pictures if pictures is None else pictures) - mean) / std
        return {
            "input_ids": self.ids,
            "attention_mask": (self.ids != PAD_ID).long(),
            "pixel_values": self.pack(normalized),
            "action": torch.zeros(len(self.ids), 3),
            **self.extra,
        }

    def perturb(self, batch: dict[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
        pictures = self.pictures.clone()
        pictures[:, view, :, box[0], box[1]] = 1 - pictures[:, view, :, box[0], box[1]]
        return self.batch(pictures)


def text_case(padding: str = "right", **options: Any) -> Case:
    grid = (2, 3, 4)
    adapter = GenericAdapter(
        **{
            "blocks": "layers", "tokens": ImageTokens(IMAGE_ID), "grid": grid, "images": "pixel_values",
            "pixels": "[-1,1]", **options,
        }
    )  # fmt: skip
    return Case(TextPolicy(), adapter, lambda pictures: pictures, texts((3, 5), 24, padding), grid, (24, 32))


class RegressionPolicy(nn.Module):
    """A vision-language model with an action head, as many policies are made."""

    def __init__(self, vlm: nn.Module, width: int) -> None:
        super().__init__()
        self.vlm = vlm
        self.head = nn.Linear(width, 3)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        inputs = {key: value for key, value in batch.items() if key != "action"}
        hidden = self.vlm(**inputs).last_hidden_state
        kept = batch["attention_mask"].unsqueeze(-1)
        pooled = (hidden * kept).sum(1) / kept.sum(1)
        return {"loss": (self.head(pooled) - batch["action"]).square().mean()}


_TEXT = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": PAD_ID,
}  # fmt: skip
_VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _adapter(grid: tuple[int, int, int], **options: Any) -> GenericAdapter:
    return GenericAdapter(**{"tokens": ImageTokens(IMAGE_ID), "grid": grid, "images": "pixel_values", **options})


def paligemma(padding: str) -> Case:
    from transformers import PaliGemmaConfig, PaliGemmaModel

    vision = {**_VISION, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32}
    config = PaliGemmaConfig(
        vision_config=vision, text_config={**_TEXT, "model_type": "gemma"}, image_token_index=IMAGE_ID,
        image_token_id=IMAGE_ID, projection_dim=32, hidden_size=32, pad_token_id=PAD_ID,
    )  # fmt: skip
    grid, ids = (2, 4, 4), texts((3, 5), 32, padding, before=0)
    adapter = _adapter(grid, blocks="vlm.language_model.layers", layout="(b v) c h w", pixels="[-1,1]")
    extra = {"token_type_ids": torch.zeros_like(ids)}
    policy = RegressionPolicy(PaliGemmaModel(config), 32)
    return Case(policy, adapter, lambda pictures: pictures.flatten(0, 1), ids, grid, (32, 32), extra=extra)


def llava(padding: str) -> Case:
    from transformers import LlavaConfig, LlavaModel

    vision = {**_VISION, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision, text_config={**_TEXT, "model_type": "llama"}, image_token_index=IMAGE_ID,
        image_token_id=IMAGE_ID, image_seq_length=16,
    )  # fmt: skip
    grid, ids = (1, 4, 4), texts((3, 5), 16, padding)
    adapter = _adapter(grid, blocks="vlm.language_model.layers", pixels="clip")
    policy = RegressionPolicy(LlavaModel(config), 32)
    return Case(policy, adapter, lambda pictures: pictures.flatten(0, 1), ids, grid, (32, 32), CLIP)


def smolvlm(padding: str) -> Case:
    from transformers import SmolVLMConfig, SmolVLMModel

    vision = {**_VISION, "image_size": 32, "patch_size": 4}
    config = SmolVLMConfig(
        vision_config=vision, text_config={**_TEXT, "model_type": "llama"}, image_token_id=IMAGE_ID, scale_factor=2,
        pad_token_id=PAD_ID,
    )  # fmt: skip
    grid, ids = (2, 4, 4), texts((3, 5), 32, padding)
    adapter = _adapter(grid, blocks="vlm.text_model.layers", pixels="[-1,1]")
    return Case(RegressionPolicy(SmolVLMModel(config), 32), adapter, lambda pictures: pictures, ids, grid, (32, 32))


def to_patches(pictures: Tensor, patch: int = 4, merge: int = 2, frames: int = 2) -> Tensor:
    """As Qwen2-VL's image processor lays a still image out; a test holds this against the processor itself."""
    b, v, _, h, w = pictures.shape
    rows, columns = h // patch // merge, w // patch // merge
    parts = pictures.reshape(b * v, 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return parts.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1).reshape(-1, 3 * frames * patch * patch)


def qwen(padding: str) -> Case:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {**_TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"}}
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=98, vision_start_token_id=97,
        vision_end_token_id=96,
    )  # fmt: skip
    grid, ids = (2, 3, 4), _with_starts(texts((4, 6), 24, padding, before=2))
    adapter = _adapter(grid, blocks="vlm.language_model.layers", layout="patches", pixels="clip")
    extra = {
        "image_grid_thw": torch.tensor([[1, 6, 8]] * 4),
        "mm_token_type_ids": (ids == IMAGE_ID).int(),
    }
    return Case(RegressionPolicy(Qwen2_5_VLModel(config), 32), adapter, to_patches, ids, grid, (24, 32), CLIP, extra)


def _with_starts(ids: Tensor) -> Tensor:
    """Two images apart: a word between them, as Qwen's template has vision_start and vision_end."""
    rows = []
    for row in ids.tolist():
        first = row.index(IMAGE_ID)
        rows.append([*row[: first + 12], 96, 97, *row[first + 12 :]])
    return torch.tensor(rows)


VLMS = {"paligemma": paligemma, "llava": llava, "smolvlm": smolvlm, "qwen": qwen}


@pytest.fixture
def make_text() -> Callable[..., Case]:
    """Make a :class:`TextPolicy` with its adapter: ``make_text(padding=..., **options)``."""
    return text_case


@pytest.fixture
def make_vlm() -> Callable[[str, str], Case]:
    """Make a tiny vision-language policy: ``make_vlm(family, padding)``."""
    pytest.importorskip("transformers")
    return lambda family, padding: VLMS[family](padding)


@pytest.fixture
def patches_of() -> Callable[..., Tensor]:
    return to_patches
