"""Depth Anything 3's backbone: a DINOv2 whose later blocks turn by turn look within each view and over all views.

Architecture: "Depth Anything 3: Recovering the Visual Space from Any Views" (arXiv 2511.10647) and its released models.
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
    """Gated MLP: the first half of ``w12``'s output, through SiLU, times the second half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = Linear(dim, 2 * hidden)
        self.w3 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)  # type: ignore[no-any-return]


class DepthAnythingBackbone(nn.Module):
    """The backbone, with the checkpoint's keys.

    Args:
        config: Its size.
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
        """Features of patches after the blocks asked for; blocks behind the last one do not run.

        Args:
            images: ``(b, v, 3, h, w)`` float, ImageNet-normalized, sides multiples of the patch.
            layers: Layer ``k`` is what block ``k`` of 1 to ``depth`` gives, in any order.
            half: ``local``: the stream after the latest block that looks within views, not normed. ``global``: the
                final norm of the stream after this block, whichever kind it is. ``both``: local, then global. Before
                the first joint block the two are the same stream, once plain and once normed.
            reference: Which view is the reference. ``first``: the first. ``auto``: the one that is chosen by its class
                token (:func:`~sfkit_depth_anything.reference.saddle_balanced`) where there are three or more, else the
                first.
            residual: Dtype of the residual stream.

        Returns:
            For each layer ``(b, v, rows, columns, d)``, ``d`` the width or (``both``) twice the width; float32, but
            ``local`` alone in ``residual``.

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
        self._positions.clear()
        return super().load_state_dict(*args, **kwargs)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(b * v, 1 + n, dim)``: the class token and the patches, with their positions."""
        device = images.device
        position = self._positions.get((grid, device), lambda: scaled_positions(self.pos_embed[:, 1:], grid))
        patches = self.patch_embed(images.flatten(0, 1)) + position
        start = self.cls_token + self.pos_embed[:, :1]
        return torch.cat((start.expand(len(patches), -1, -1), patches), 1)

    def _step(self, index: int, x: Tensor, views: int, rotations: tuple[Rope, Rope]) -> tuple[Tensor, Tensor]:
        """Run one block; the stream after the latest block within views, and after this one."""
        block = self.blocks[index]
        if self.config.joins_views(index):
            joint = block(x.reshape(len(x) // views, -1, x.shape[-1]), rotations[1])
            # No joint block follows another: the input comes from a block within views.
            return x, joint.reshape(x.shape)
        x = block(x, rotations[0] if index >= self.config.alt_start else None)
        return x, x

    def _feature(self, local: Tensor, x: Tensor, half: Half) -> Tensor:
        """``(b * v, n, d)`` without the token in front."""
        if half == "local":
            return local[:, 1:]
        normed: Tensor = self.norm(x[:, 1:])
        return normed if half == "global" else torch.cat((local[:, 1:], normed), -1)

    def _camera_tokens(self, chosen: Tensor | None, b: int, v: int) -> Tensor:
        """``(b * v, 1, dim)``: the first token for the reference view of each sample, the second for the others.

        Its token is all that tells the reference from the other views (joint blocks see no order), so that nothing
        has to be moved to the front and back.
        """
        views = torch.arange(v, device=self.camera_token.device)
        first = views.expand(b, v) == (0 if chosen is None else chosen.unsqueeze(-1))
        reference, other = self.camera_token[0]
        return torch.where(first.unsqueeze(-1), reference, other).reshape(b * v, 1, -1)

    def _rotations(self, grid: tuple[int, int], views: int) -> tuple[Rope, Rope]:
        """Within a view, and over all views; made on the device of the weights."""
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
