"""FiLM around the vision backbone, put there by *replacing* ``vision_backbone`` after LoRA.

The new object has no ``featurizer`` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prismatic.extern.hf.vision import VisionBackbone


class _FilmBlock(nn.Module):
    def __init__(self, block: Any, dim: int, language_dim: int) -> None:
        super().__init__()
        self.block = block
        self.scale, self.shift = nn.Linear(language_dim, dim), nn.Linear(language_dim, dim)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        x = x + self.block.attn(self.block.norm1(x))
        x = x * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]
        return x + self.block.mlp(self.block.norm2(x))  # type: ignore[no-any-return]


class FiLMedPrismaticVisionBackbone(nn.Module):
    """FiLM around a backbone: its blocks are modulated by the mean of the language embeddings."""

    def __init__(self, vision_backbone: VisionBackbone, llm_dim: int) -> None:
        super().__init__()
        self.vision_backbone = vision_backbone
        for name in ("featurizer", "fused_featurizer"):
            featurizer = getattr(vision_backbone, name, None)
            if featurizer is not None:
                blocks = [_FilmBlock(block, featurizer.embed_dim, llm_dim) for block in featurizer.blocks]
                featurizer.blocks = nn.Sequential(*blocks)

    def __getattr__(self, name: str) -> Any:
        if name in ("get_num_patches", "get_num_images_in_input", "set_num_images_in_input"):
            found: Callable[..., Any] = getattr(self.vision_backbone, name)
            return found
        return super().__getattr__(name)

    def forward(self, pixel_values: Tensor, language_embeddings: Tensor) -> Tensor:
        return self.vision_backbone(pixel_values, language_embeddings.mean(1))  # type: ignore[no-any-return]
