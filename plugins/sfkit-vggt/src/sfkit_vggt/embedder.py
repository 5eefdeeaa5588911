"""VGGT's patch embedder: DINOv2 with registers. Only its patch tokens enter the alternating blocks."""

from __future__ import annotations

import torch
from sfkit_backbones.blocks import Block, LayerNorm
from sfkit_backbones.patches import PatchEmbed, patch_grid, resize_positions
from sfkit_backbones.tables import Tables
from torch import Tensor, nn

from sfkit_vggt.config import VggtConfig

_EPS = 1e-6


class Embedder(nn.Module):
    """A vision transformer over single images.

    State dict keys are those of the checkpoint under ``aggregator.patch_embed.``; its ``mask_token`` is unused.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.native_side**2, config.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.embed_registers, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.embed_heads, config.embed_hidden, eps=_EPS) for _ in range(config.embed_layers)
        )
        self.norm = LayerNorm(config.dim, eps=_EPS)
        self._positions: Tables[Tensor] = Tables()
        self._resized_from: tuple[Tensor, int] | None = None

    def forward(self, images: Tensor, residual: torch.dtype = torch.float32) -> Tensor:
        """Embed images.

        Args:
            images: ``(n, 3, h, w)`` float32, ImageNet-normalized, sides multiples of the patch.
            residual: Dtype of the residual stream.

        Returns:
            ``(n, rows * columns, dim)`` float32, row-major.
        """
        n = len(images)
        patches = self.patch_embed(images) + self.positions(patch_grid(images, self.patch))
        cls = self.cls_token + self.pos_embed[:, :1]
        # Registers have no position, so they are added after the positions.
        specials = torch.cat((cls, self.register_tokens), 1)
        x = torch.cat((specials.expand(n, -1, -1), patches), 1).to(residual)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, specials.shape[1] :])  # type: ignore[no-any-return]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of the patches, ``(1, rows * columns, dim)`` float32; cached for each grid."""
        table = self.pos_embed
        # No cache for a tensor of inference mode, which has no version counter, nor where the table needs a gradient.
        if table.is_inference() or (torch.is_grad_enabled() and table.requires_grad):
            return resize_positions(table[:, 1:], grid)
        self._forget_other_weights(table)
        return self._positions.get((grid, table.device), lambda: resize_positions(table[:, 1:], grid))

    def _forget_other_weights(self, table: Tensor) -> None:
        """Clear the cache if loading has replaced or overwritten the ``(1, 1 + side * side, dim)`` table."""
        known = self._resized_from
        if known is None or known[0] is not table or known[1] != table._version:
            self._positions.clear()
            self._resized_from = (table, table._version)
