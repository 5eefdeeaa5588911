"""The backbone of VGGT: patch tokens, then alternating attention within a frame and over all frames.

Source: J. Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025 (arXiv:2503.11651), section 3.2. Its
figure and the released weights differ in the order of the blocks. This follows the weights: the frame block is first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from sfkit_backbones.blocks import Block
from sfkit_backbones.patches import patch_grid
from sfkit_backbones.rope import Rope, grid_positions, rope_table
from sfkit_backbones.tables import Tables
from torch import Tensor, nn

from sfkit.errors import ShapeError
from sfkit.views.resample import imagenet_normalized
from sfkit_vggt.config import VggtConfig
from sfkit_vggt.embedder import Embedder

Half = Literal["both", "frame", "global"]
Tokens = Literal["all", "patch", "camera", "register"]
Grid = tuple[int, int]

_EPS = 1e-5


class Aggregator(nn.Module):
    """VGGT's alternating blocks over all views of a sample.

    Layer ``k`` is the output of the ``k``-th frame block and of the ``k``-th global block, concatenated, without a
    norm. The first view has special tokens of its own and the others share theirs: the features depend on which view is
    first, and permute with the others. State dict keys are those of the checkpoint under ``aggregator.``.

    Args:
        config: Sizes.
        residual: Dtype of the residual stream.
        round_angles: Round the angles of the rotary embedding to bfloat16, as published pipelines on CUDA do.
    """

    def __init__(
        self, config: VggtConfig, *, residual: torch.dtype = torch.float32, round_angles: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.residual = residual
        self.round_angles = round_angles
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, config.dim))
        self.patch_embed = Embedder(config)
        self.frame_blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.global_blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self._ropes: Tables[Rope] = Tables()

    def forward(
        self, images: Tensor, layers: Sequence[int], *, half: Half = "both", tokens: Tokens = "all"
    ) -> list[Tensor]:
        """Features of the requested layers; blocks after the last of them do not run.

        Args:
            images: ``(b, s, 3, h, w)`` float in [0, 1], sides multiples of the patch, the reference view first.
            layers: From 1 to ``num_layers``, in any order.
            half: Output of the frame block (``frame``), of the global block (``global``), or both concatenated.
            tokens: Tokens of each view: its patches (row-major), its camera token, its registers, or all in the order
                camera, registers, patches.

        Returns:
            One ``(b, s, tokens, dim)`` tensor for each layer, ``2 * dim`` wide for both halves, in the dtype of the
            residual stream.

        Raises:
            ShapeError: The images have another form, or sides that are no multiples of the patch.
        """
        if images.ndim != 5:
            raise ShapeError(f"VGGT was given images of shape {tuple(images.shape)}, expected (b, s, 3, h, w).")
        grid = patch_grid(images, self.config.patch)
        b, s = images.shape[:2]
        x = self.embed(images)
        p, last = x.shape[1], max(layers)
        kept: dict[int, Tensor] = {}
        for layer in range(1, last + 1):
            x = self.frame_blocks[layer - 1](x.reshape(b * s, p, -1), self.rope(grid, 1, x.device))
            parts = [self._pick(x.reshape(b, s, p, -1), tokens)] if layer in layers and half != "global" else []
            if layer < last or half != "frame":
                x = self.global_blocks[layer - 1](x.reshape(b, s * p, -1), self.rope(grid, s, x.device))
            if layer in layers:
                if half != "frame":
                    parts.append(self._pick(x.reshape(b, s, p, -1), tokens))
                # torch.cat copies, also with one part: a slice would keep the memory of all tokens.
                kept[layer] = torch.cat(parts, -1)
        return [kept[layer] for layer in layers]

    def embed(self, images: Tensor) -> Tensor:
        """``(b, s, 3, h, w)`` to ``(b * s, 1 + registers + rows * columns, dim)``: camera, registers, patches."""
        b, s = images.shape[:2]
        patches = self.patch_embed(imagenet_normalized(images.flatten(0, 1).float()), self.residual)
        specials = torch.cat((self.camera_token, self.register_token), 2)
        of_views = torch.cat((specials[:, :1], specials[:, 1:].expand(-1, s - 1, -1, -1)), 1)
        of_views = of_views.expand(b, -1, -1, -1).flatten(0, 1)
        return torch.cat((of_views, patches), 1).to(self.residual)

    def rope(self, grid: Grid, views: int, device: torch.device) -> Rope:
        """Rotary tables for the tokens of ``views`` views; every view has the same positions."""
        # Rounding is part of the key because parity fixtures switch it between calls.
        return self._ropes.get((grid, views, self.round_angles, device), lambda: self._rope(grid, views, device))

    def _rope(self, grid: Grid, views: int, device: torch.device) -> Rope:
        config = self.config
        positions = grid_positions(grid, specials=1 + config.registers, offset=1)
        cos, sin = rope_table(positions, config.dim // config.heads, round_angles=self.round_angles)
        return cos.repeat(views, 1).to(device), sin.repeat(views, 1).to(device)

    def _pick(self, x: Tensor, tokens: Tokens) -> Tensor:
        """``(b, s, 1 + registers + patches, dim)`` to the requested tokens, ``(b, s, tokens, dim)``."""
        patches = 1 + self.config.registers
        span = {"all": slice(None), "camera": slice(0, 1), "register": slice(1, patches), "patch": slice(patches, None)}
        return x[:, :, span[tokens]]


def _block(config: VggtConfig) -> Block:
    return Block(config.dim, config.heads, config.hidden, eps=_EPS, qk_norm=_EPS)
