"""The teachers ``da3-small``, ``da3-base``, ``da3-large`` and ``da3-giant``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
from pydantic import Field
from sfkit_backbones.hub import Source
from sfkit_backbones.memory import block_bytes
from sfkit_backbones.teacher import BackboneOptions, BackboneTeacher
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import log_info
from sfkit.registry.component import AnyOptions
from sfkit.views.resample import imagenet_normalized
from sfkit.views.types import Views
from sfkit_depth_anything import config
from sfkit_depth_anything.backbone import DepthAnythingBackbone, Half, Reference
from sfkit_depth_anything.config import DepthAnythingConfig
from sfkit_depth_anything.reference import SELECT_FROM
from sfkit_depth_anything.weights import IGNORED, PREFIXES, find_prefix


class DepthAnythingOptions(BackboneOptions):
    """Options of the Depth Anything 3 teachers."""

    half: Half = Field(
        default="both",
        description="Stream after the last block within views (local), normed output of the layer (global), or both.",
    )
    reference: Reference = Field(
        default="auto",
        description="auto: from 3 views on, Depth Anything chooses the reference view by content. first: the first of "
        "view_order.",
    )


class DepthAnything3(BackboneTeacher):
    """Features of Depth Anything 3's backbone: base class of the registered sizes.

    The longer side of an image becomes ``size`` (504, the default of its API). :meth:`features` applies ImageNet's
    normalization, and nothing else does. Layers count from 1; the released heads read the last four.
    """

    prefix = PREFIXES[0]
    ignored = IGNORED
    patch = 14
    default_size = 504
    # About zero after normalization. Depth Anything itself never pads.
    default_fill = 0.45
    family = "DA3 backbone"

    Options: ClassVar[type[Options]] = DepthAnythingOptions
    options: DepthAnythingOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        self._checked_order = False

    @property
    def backbone_config(self) -> DepthAnythingConfig:
        found: DepthAnythingConfig = super().backbone_config
        return found

    @property
    def num_layers(self) -> int:
        return self.backbone_config.num_layers

    def dim(self, layer: int) -> int:
        return self.backbone_config.dim * (2 if self.options.half == "both" else 1)

    def build(self) -> nn.Module:
        return DepthAnythingBackbone(self.backbone_config)

    def prefix_in(self, path: Path) -> str:
        return find_prefix(path)

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        super().observe(batch)
        if batch is None or self._checked_order:
            return
        self._checked_order = True
        if self.options.view_order and self.options.reference == "auto" and len(batch[0].names) >= SELECT_FROM:
            log_info(
                f"teacher {self.name!r} chooses its reference view by content among {SELECT_FROM} or more views and "
                "ignores view_order; set reference=first to make the first camera of view_order the reference"
            )

    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images in [0, 1] to ``(b, v, rows, columns, d)`` for each layer."""
        residual = torch.bfloat16 if self.options.residual == "bfloat16" else torch.float32
        found = backbone(
            imagenet_normalized(images),
            layers,
            half=self.options.half,
            reference=self.options.reference,
            residual=residual,
        )
        return cast("list[Tensor]", found)

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        b, v, h, w = shape
        dim, patches = self.backbone_config.dim, b * v * (h // self.patch) * (w // self.patch)
        product = cast("DepthAnythingBackbone", backbone).patch_embed.proj.weight.element_size()
        residual = 2 if self.options.residual == "bfloat16" else 4
        hidden = self.backbone_config.hidden * (2 if self.backbone_config.swiglu else 1)  # both gates, SiLU and product
        tokens = patches + b * v
        block = block_bytes(tokens, dim, hidden, product=product, residual=residual)
        feature = patches * self.dim(layers[0]) * 4
        # Resized and normalized images stay to the end; the normalization needs one more copy.
        image_bytes = b * v * 3 * h * w * 4
        # The last feature is computed after its block has freed its memory.
        last = max(block, tokens * dim * (2 * residual + 4) + feature)
        return max(3 * image_bytes, 2 * image_bytes + last + (len(set(layers)) - 1) * feature)


def _configs(full: DepthAnythingConfig, tiny: DepthAnythingConfig = config.TINY) -> dict[str, Options]:
    return {"full": full, "tiny": tiny}


class DA3Small(DepthAnything3):
    """Depth Anything 3 small: 12 blocks, 384 wide."""

    name = "da3-small"
    license = "Apache-2.0"
    source = Source("depth-anything/DA3-SMALL")
    configs = _configs(config.SMALL)


class DA3Base(DepthAnything3):
    """Depth Anything 3 base: 12 blocks, 768 wide."""

    name = "da3-base"
    license = "Apache-2.0"
    source = Source("depth-anything/DA3-BASE")
    configs = _configs(config.BASE)


class DA3Large(DepthAnything3):
    """Depth Anything 3 large: 24 blocks, 1024 wide; revised weights, since the first ones had a fault in training."""

    name = "da3-large"
    license = "CC-BY-NC-4.0"
    source = Source("depth-anything/DA3-LARGE-1.1")
    configs = _configs(config.LARGE)


class DA3Giant(DepthAnything3):
    """Depth Anything 3 giant: 40 blocks, 1536 wide, gated MLPs; the revised weights, as for the large size."""

    name = "da3-giant"
    license = "CC-BY-NC-4.0"
    source = Source("depth-anything/DA3-GIANT-1.1")
    configs = _configs(config.GIANT, config.TINY_GATED)
