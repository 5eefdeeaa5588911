"""Depth Anything 3's backbone: a DINOv2 whose later blocks alternate attention within views and over all views.

Source: "Depth Anything 3: Recovering the Visual Space from Any Views" (arXiv 2511.10647) and its released models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_backbones.blocks import Block, LayerNorm, Linear
from sfkit_backbones.patches import PatchEmbed, patch_grid
from sfkit_backbones.rope import Rope
from sfkit_backbones.tables import Tables
from torch import Tensor, nn

from sfkit_depth_anything.config import DepthAnythingConfig
from sfkit_depth_anything.reference import SELECT_FROM, saddle_balanced
from sfkit_depth_anything.tables import joint_rotation, scaled_positions, view_rotation

Half = Literal["both", "local", "global"]
Reference = Literal["auto", "first"]


class SwiGlu(nn.Module):
    """Gated MLP: SiLU of the first half of ``w12``'s output, times the second half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = Linear(dim, 2 * hidden)
        self.w3 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)  # type: ignore[no-any-return]


class DepthAnythingBackbone(nn.Module):
    """The backbone, with the checkpoint's keys.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.side**2, config.dim))
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.num_layers))
        self.norm = LayerNorm(config.dim, eps=1e-5)
        self._positions: Tables[Tensor] = Tables()
        self._ropes: Tables[Rope] = Tables()

    def forward(
        self,
        images: Tensor,
        layers: Sequence[int],
        *,
        half: Half = "both",
        reference: Reference = "auto",
        residual: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Features of the patches after the requested layers; blocks after the last of them do not run.

        Args:
            images: ``(b, v, 3, h, w)`` float, ImageNet-normalized, sides multiples of the patch.
            layers: From 1 to ``num_layers``, in any order.
            half: ``local``: the stream after the latest block within views, without a norm. ``global``: the final norm
                of the stream after the layer. ``both``: local and global, concatenated. Before the first block over all
                views, both halves are the same stream, without and with the norm.
            reference: ``first``: the first view is the reference. ``auto``: with three views or more,
                :func:`~sfkit_depth_anything.reference.saddle_balanced` chooses it by the class tokens.
            residual: Dtype of the residual stream.

        Returns:
            One ``(b, v, rows, columns, d)`` tensor for each layer; ``d`` is the width, or twice the width for ``both``.
            The dtype is float32, or ``residual`` for ``local``.

        Raises:
            ShapeError: The sides are no multiples of the patch.
        """
        b, v = images.shape[:2]
        grid = patch_grid(images, self.config.patch)
        rotations = self._rotations(grid, v)
        x = self._embed(images, grid).to(residual)
        chosen: Tensor | None = None
        found: dict[int, Tensor] = {}
        for index in range(max(layers)):
            if index == self.config.alt_start - 1 and reference == "auto" and v >= SELECT_FROM:
                chosen = saddle_balanced(x[:, 0].reshape(b, v, -1))
            if index == self.config.alt_start:
                x = torch.cat((self._camera_tokens(chosen, b, v).to(x.dtype), x[:, 1:]), 1)
            local, x = self._step(index, x, v, rotations)
            if index + 1 in layers:
                found[index + 1] = self._feature(local, x, half).reshape(b, v, *grid, -1)
            del local
        return [found[layer] for layer in layers]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        # Cached positions are computed from the weights.
        self._positions.clear()
        return super().load_state_dict(*args, **kwargs)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(b, v, 3, h, w)`` to ``(b * v, 1 + n, dim)``: the class token and the patches, with their positions."""
        device = images.device
        position = self._positions.get((grid, device), lambda: scaled_positions(self.pos_embed[:, 1:], grid))
        patches = self.patch_embed(images.flatten(0, 1)) + position
        start = self.cls_token + self.pos_embed[:, :1]
        return torch.cat((start.expand(len(patches), -1, -1), patches), 1)

    def _step(self, index: int, x: Tensor, views: int, rotations: tuple[Rope, Rope]) -> tuple[Tensor, Tensor]:
        """Run one block on ``(b * v, 1 + n, dim)``: the stream after the latest block within views, and after this."""
        block = self.blocks[index]
        if self.config.joins_views(index):
            joint = block(x.reshape(len(x) // views, -1, x.shape[-1]), rotations[1])
            # Blocks alternate, so the input is the output of a block within views.
            return x, joint.reshape(x.shape)
        x = block(x, rotations[0] if index >= self.config.alt_start else None)
        return x, x

    def _feature(self, local: Tensor, x: Tensor, half: Half) -> Tensor:
        """``(b * v, 1 + n, dim)`` streams to ``(b * v, n, d)`` features, without the class token."""
        if half == "local":
            return local[:, 1:]
        normed: Tensor = self.norm(x[:, 1:])
        return normed if half == "global" else torch.cat((local[:, 1:], normed), -1)

    def _camera_tokens(self, chosen: Tensor | None, b: int, v: int) -> Tensor:
        """``(b * v, 1, dim)``: the first token for the reference view of each sample, the second for the others.

        ``chosen`` is ``(b,)`` long; None is the first view. Blocks over all views see no order of the views, so this
        token alone marks the reference and no view has to move to the front.
        """
        views = torch.arange(v, device=self.camera_token.device)
        first = views.expand(b, v) == (0 if chosen is None else chosen.unsqueeze(-1))
        reference, other = self.camera_token[0]
        return torch.where(first.unsqueeze(-1), reference, other).reshape(b * v, 1, -1)

    def _rotations(self, grid: tuple[int, int], views: int) -> tuple[Rope, Rope]:
        """Rotary tables within a view and over all views, on the device of the weights."""
        head_dim, device = self.config.dim // self.config.heads, self.camera_token.device

        def moved(rope: Rope) -> Rope:
            return rope[0].to(device), rope[1].to(device)

        return (
            self._ropes.get((grid, device, "view"), lambda: moved(view_rotation(grid, head_dim))),
            self._ropes.get((grid, device, views), lambda: moved(joint_rotation(grid, views, head_dim))),
        )


def _block(config: DepthAnythingConfig, index: int) -> Block:
    return Block(
        config.dim,
        config.heads,
        config.hidden,
        eps=1e-6,
        qk_norm=1e-5 if index >= config.alt_start else None,
        mlp=SwiGlu(config.dim, config.hidden) if config.swiglu else None,
    )
