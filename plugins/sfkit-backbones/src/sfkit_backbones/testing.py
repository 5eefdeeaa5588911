"""Tools for tests of teachers: the smallest complete teacher with a network, which is also an example, and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.views.types import Views
from sfkit_backbones.blocks import Block
from sfkit_backbones.hub import Source
from sfkit_backbones.memory import block_bytes
from sfkit_backbones.patches import PatchEmbed, patch_grid
from sfkit_backbones.teacher import BackboneTeacher


class SmallConfig(Options):
    """Width of :class:`SmallBackbone`."""

    dim: int = 8


class SmallBackbone(nn.Module):
    """A patch embedding, then two blocks that attend over all views of a sample."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(4, config.dim)
        self.first_view = nn.Parameter(torch.zeros(config.dim))
        self.blocks = nn.ModuleList(Block(config.dim, 2, 2 * config.dim, eps=1e-6) for _ in range(2))

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images to ``(b, v, rows, columns, dim)`` for each layer."""
        b, v = images.shape[:2]
        rows, columns = patch_grid(images, 4)
        x = self.patch_embed(images.flatten(0, 1)).float().unflatten(0, (b, v))
        x = torch.cat((x[:, :1] + self.first_view, x[:, 1:]), 1).flatten(1, 2)
        found = {}
        for index, block in enumerate(self.blocks, 1):
            x = block(x)
            found[index] = x.reshape(b, v, rows, columns, -1)
        return [found[layer] for layer in layers]


class SmallTeacher(BackboneTeacher):
    """The teacher of :class:`SmallBackbone`. Its features depend on which view is first."""

    name = "small"
    license = "CC-BY-NC-4.0"
    source = Source("owner/small", gate="Accept")
    prefix = "backbone."
    ignored = ("head.*",)
    configs: ClassVar = {"full": SmallConfig(dim=16), "tiny": SmallConfig()}
    patch = 4
    default_size = 16

    @property
    def num_layers(self) -> int:
        return 2

    def dim(self, layer: int) -> int:
        return int(self.backbone_config.dim)

    def build(self) -> nn.Module:
        return SmallBackbone(self.backbone_config)

    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images to ``(b, v, rows, columns, dim)`` for each layer."""
        return backbone(images, layers)  # type: ignore[no-any-return]

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        b, v, h, w = shape
        return block_bytes(b * v * h * w // 16, self.dim(1), 2 * self.dim(1), product=4)


def random_views(
    present: Sequence[Sequence[bool]], size: tuple[int, int] = (56, 56), seed: int = 0, prefix: str = ""
) -> Views:
    """Random images ``(b, v, 3, *size)`` in [0, 1] of cameras ``cam0``, ``cam1``, ...

    Args:
        present: For each sample, which of its views are present; the others have no valid pixel.
        size: Height and width in pixels.
        seed: Seed of the images.
        prefix: Prefix of the names of the cameras.
    """
    b, v = len(present), len(present[0])
    images = torch.rand(b, v, 3, *size, generator=torch.Generator().manual_seed(seed))
    valid = torch.tensor(present)[:, :, None, None].expand(b, v, *size)
    return Views(images, valid, tuple(f"{prefix}cam{i}" for i in range(v)))
