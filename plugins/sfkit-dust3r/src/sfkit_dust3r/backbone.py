"""The backbone of DUSt3R and MASt3R without heads, with the keys of their checkpoints.

Source: Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", 2024 (arXiv 2312.14132). Encoder and decoder are those of
Weinzaepfel et al., "CroCo v2", 2023 (arXiv 2211.10408).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import TypeAlias

import torch
from sfkit_backbones.blocks import Block, LayerNorm, Linear
from sfkit_backbones.patches import PatchEmbed, patch_grid
from sfkit_backbones.rope import Rope, grid_positions, rope_table
from sfkit_backbones.tables import Tables
from torch import Tensor, nn

from sfkit_dust3r.blocks import DecoderBlock
from sfkit_dust3r.config import DUSt3RConfig, Target

_EPS = 1e-6

#: Rows and columns of patches.
Grid: TypeAlias = "tuple[int, int]"


class PairBackbone(nn.Module):
    """An encoder of single images, and a decoder of pairs of images.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        self.config = config
        self._ropes: Tables[Rope] = Tables()
        self.patch_embed = PatchEmbed(config.patch, config.enc_dim)
        self.enc_blocks = nn.ModuleList(
            Block(config.enc_dim, config.enc_heads, config.enc_hidden, eps=_EPS, layer_scale=False)
            for _ in range(config.enc_layers)
        )
        self.enc_norm = LayerNorm(config.enc_dim, eps=_EPS)
        if config.dec_layers:
            self.decoder_embed = Linear(config.enc_dim, config.dec_dim)
            self.dec_blocks = self._stack()
            if not config.shared_decoder:
                self.dec_blocks2 = self._stack()
            self.dec_norm = LayerNorm(config.dec_dim, eps=_EPS)

    def _stack(self) -> nn.ModuleList:
        sizes = self.config
        return nn.ModuleList(
            DecoderBlock(sizes.dec_dim, sizes.dec_heads, sizes.dec_hidden, eps=_EPS) for _ in range(sizes.dec_layers)
        )

    def forward(
        self, images: Tensor, layers: Sequence[int], target: Target = "decoder", residual: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Features of views of one size; the first view is the reference.

        Each image is encoded once. The decoder sees each view in a pair with the first; a single view is its own
        partner. The first view has one output per partner, and its feature is their mean: it does not depend on the
        order of the other views.

        Args:
            images: ``(b, v, 3, h, w)`` in [-1, 1], sides multiples of the patch.
            layers: Of the encoder if ``target`` is ``encoder``, else of the decoder; see :meth:`encode` and
                :meth:`decode`. ``both`` concatenates the encoder's last (normed) features and those of the layer.
            target: Features of the encoder, of the decoder, or of both.
            residual: Dtype of the residual stream.

        Returns:
            One ``(b, v, rows, columns, d)`` tensor for each layer.

        Raises:
            ShapeError: A side is no multiple of the patch, or there is no view.
        """
        grid = patch_grid(images, self.config.patch)
        b, v = images.shape[:2]
        if target == "encoder":
            encoded = self.encode(images.flatten(0, 1), layers, residual)
            return [encoded[layer].view(b, v, *grid, -1) for layer in layers]
        last = self.config.enc_layers
        normed = self.encode(images.flatten(0, 1), [last], residual)[last]
        normed = normed.view(b, v, *normed.shape[1:])
        decoded = self._decode_views(normed, grid, layers, residual)
        if target == "both":
            decoded = {k: torch.cat((normed.to(values.dtype), values), -1) for k, values in decoded.items()}
        return [decoded[layer].view(b, v, *grid, -1) for layer in layers]

    def encode(
        self, images: Tensor, layers: Collection[int], residual: torch.dtype = torch.float32
    ) -> dict[int, Tensor]:
        """Encoder features of single images.

        Args:
            images: ``(n, 3, h, w)`` in [-1, 1].
            layers: ``k`` is the residual stream after ``k`` blocks, except the last, which is normed.
            residual: Dtype of the residual stream.

        Returns:
            ``(n, rows * columns, enc_dim)`` for each layer; blocks after the deepest layer do not run.
        """
        grid = patch_grid(images, self.config.patch)
        rope = self._table(grid, self.config.enc_dim // self.config.enc_heads, images.device)
        tokens = self.patch_embed(images).to(residual).contiguous()
        kept = {}
        for layer, block in enumerate(islice(self.enc_blocks, max(layers)), 1):
            tokens = block(tokens, rope)
            if layer in layers:
                kept[layer] = self.enc_norm(tokens) if layer == len(self.enc_blocks) else tokens
        return kept

    def decode(
        self,
        first: Tensor,
        second: Tensor,
        grids: tuple[Grid, Grid],
        layers: Collection[int],
        residual: torch.dtype = torch.float32,
        *,
        first_only: bool = False,
    ) -> dict[int, tuple[Tensor, ...]]:
        """Decoder features of pairs, both in the coordinate frame of the first view.

        Args:
            first: ``(n, tokens, dec_dim)`` of the reference views, from :meth:`embed`.
            second: ``(n, tokens, dec_dim)`` of their partners, whose number of tokens may differ.
            grids: Rows and columns of both.
            layers: ``k`` is the residual stream after ``k`` layers, except the last, which is normed.
            residual: Dtype of the residual stream.
            first_only: Do not return the partners' features, and skip their last layer.

        Returns:
            Features of first and second (or of first only) for each layer; layers after the deepest do not run.
        """
        head_dim = self.config.dec_dim // self.config.dec_heads
        ropes = [self._table(grid, head_dim, first.device) for grid in grids]
        first, second = first.to(residual), second.to(residual)
        stacks = zip(self.dec_blocks, self.dec_blocks if self.config.shared_decoder else self.dec_blocks2, strict=True)
        deepest, kept = max(layers), {}
        for layer, (one, two) in enumerate(islice(stacks, deepest), 1):
            # Both read the outputs of the previous layer, so the first must not be replaced before the second runs.
            fresh = one(first, second, ropes[0], ropes[1])
            if not (first_only and layer == deepest):
                second = two(second, first, ropes[1], ropes[0])
            first = fresh
            if layer in layers:
                wanted = (first,) if first_only else (first, second)
                kept[layer] = tuple(map(self.dec_norm, wanted)) if layer == self.config.dec_layers else wanted
        return kept

    def embed(self, encoded: Tensor) -> Tensor:
        """The encoder's last features ``(..., enc_dim)`` to the decoder's input ``(..., dec_dim)``."""
        return self.decoder_embed(encoded)  # type: ignore[no-any-return]

    def _decode_views(
        self, encoded: Tensor, grid: Grid, layers: Sequence[int], residual: torch.dtype
    ) -> dict[int, Tensor]:
        """``(b, v, n, enc_dim)`` to ``(b, v, n, dec_dim)`` for each layer."""
        b, v = encoded.shape[:2]
        embedded = self.embed(encoded)
        partners = embedded[:, 1:] if v > 1 else embedded
        reference = embedded[:, :1].expand_as(partners)
        pairs = self.decode(
            reference.flatten(0, 1), partners.flatten(0, 1), (grid, grid), layers, residual, first_only=v == 1
        )
        decoded = {}
        for layer in list(pairs):
            # pop: the memory of one layer's pairs is freed before the next layer is concatenated.
            first, *second = (side.view(b, -1, *side.shape[1:]) for side in pairs.pop(layer))
            decoded[layer] = torch.cat((_mean(first), *second), 1)
        return decoded

    def _table(self, grid: Grid, head_dim: int, device: torch.device) -> Rope:
        def make() -> Rope:
            cos, sin = rope_table(grid_positions(grid), head_dim)
            return cos.to(device), sin.to(device)

        return self._ropes.get((grid, head_dim, device), make)


def _mean(outputs: Tensor) -> Tensor:
    """Mean over partners in float32, ``(b, partners, n, d)`` to ``(b, 1, n, d)``."""
    if outputs.shape[1] == 1:
        return outputs
    return outputs.mean(1, keepdim=True, dtype=torch.float32).to(outputs.dtype)
