"""The teachers ``vggt`` and ``vggt-commercial``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from sfkit_backbones.hub import Source
from sfkit_backbones.memory import block_bytes
from sfkit_backbones.teacher import BackboneOptions, BackboneTeacher
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.registry.component import Harmless
from sfkit_vggt.aggregator import Aggregator, Half
from sfkit_vggt.config import FULL, TINY, VggtConfig


class VggtOptions(BackboneOptions):
    """Options of the VGGT teachers."""

    half: Half = Field(
        default="both", description="Output of a layer's frame block, of its global block, or both concatenated."
    )
    tokens: Literal["patch", "camera", "register"] = Field(
        default="patch", description="The patches, or one vector per view: its camera token or its registers."
    )
    round_rope_angles: Harmless[bool] = Field(
        default=False, description="Round the rotary angles to bfloat16, as published CUDA pipelines do."
    )


class VggtTeacher(BackboneTeacher):
    """Base class of both teachers.

    The network attends over all views of a sample. The first one (see ``view_order``) is the reference view. ``camera``
    and ``register`` give a 1 x 1 grid for each view: the camera token, or the concatenated registers.
    """

    prefix = "aggregator."
    ignored = ("camera_head.*", "point_head.*", "depth_head.*", "track_head.*")
    configs: ClassVar[dict[str, VggtConfig]] = {"full": FULL, "tiny": TINY}
    patch = 14
    default_size = 518
    family = "VGGT aggregator"

    Options: ClassVar[type[Options]] = VggtOptions
    options: VggtOptions

    @property
    def side(self) -> int:
        return self.options.size or cast("VggtConfig", self.backbone_config).native

    @property
    def num_layers(self) -> int:
        return cast("VggtConfig", self.backbone_config).num_layers

    def dim(self, layer: int) -> int:
        config: VggtConfig = self.backbone_config
        tokens = config.registers if self.options.tokens == "register" else 1
        return config.dim * tokens * (2 if self.options.half == "both" else 1)

    def build(self) -> Aggregator:
        residual = torch.bfloat16 if self.options.residual == "bfloat16" else torch.float32
        return Aggregator(self.backbone_config, residual=residual, round_angles=self.options.round_rope_angles)

    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images in [0, 1] to ``(b, v, rows, columns, d)`` for each layer."""
        b, v, _, h, w = images.shape
        single = self.options.tokens != "patch"
        grid = (1, 1) if single else (h // self.patch, w // self.patch)
        found: list[Tensor] = backbone(images, layers, half=self.options.half, tokens=self.options.tokens)
        return [tokens.reshape(b, v, *grid, -1) for tokens in found]

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        b, v, h, w = shape
        config: VggtConfig = self.backbone_config
        assert isinstance(backbone, Aggregator)
        patches = (h // self.patch) * (w // self.patch)
        product = backbone.patch_embed.patch_embed.proj.weight.element_size()
        residual = backbone.residual.itemsize
        embedder = block_bytes(
            b * v * (patches + 1 + config.embed_registers), config.dim, config.embed_hidden,
            product=product, residual=residual,
        )  # fmt: skip
        alternating = block_bytes(
            b * v * (patches + 1 + config.registers), config.dim, config.hidden, product=product, residual=residual
        )
        cells = patches if self.options.tokens == "patch" else 1
        handed_out = sum(b * v * cells * self.dim(layer) * residual for layer in set(layers))
        image_bytes = b * v * 3 * h * w * 4
        return image_bytes + max(embedder, alternating + handed_out)


class Vggt(VggtTeacher):
    """VGGT-1B."""

    name = "vggt"
    license = "CC-BY-NC-4.0"
    source = Source(
        repo="facebook/VGGT-1B",
        files=("model.safetensors", "model.pt"),
        revision="860abec7937da0a4c03c41d3c269c366e82abdf9",
        sha256={"model.pt": "d15bf50a8615c8225ed48b51ea5cac673d82442ec0309036df555a053253afe0"},
    )


class VggtCommercial(VggtTeacher):
    """VGGT-1B-Commercial: the same architecture under a license that permits commercial use."""

    name = "vggt-commercial"
    license = "VGGT License"
    source = Source(
        repo="facebook/VGGT-1B-Commercial",
        gate="Accept the VGGT License (commercial use, but no military use and no weapons) and wait for access",
    )
