"""The teachers ``dust3r`` and ``mast3r``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from sfkit_backbones.hub import Source
from sfkit_backbones.placement import Placement, Size, canvas_of
from sfkit_backbones.teacher import BackboneTeacher
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import CheckpointError, ConfigError
from sfkit.registry.component import AnyOptions
from sfkit_dust3r.backbone import PairBackbone
from sfkit_dust3r.config import FULL, TINY, DUSt3RConfig, DUSt3ROptions, PairOptions
from sfkit_dust3r.image_geometry import official_placement
from sfkit_dust3r.memory import working_bytes
from sfkit_dust3r.resampling import Kernel, resize

_HEADS = ("downstream_head1.*", "downstream_head2.*")
_DECODER = ("decoder_embed.*", "dec_blocks.*", "dec_blocks2.*", "dec_norm.*")


class PairTeacher(BackboneTeacher):
    """A teacher that encodes each view by itself and decodes it in a pair with the first view.

    Class attributes:
        sources: Location of the official weights, for each value of the option ``config`` that has them.
        sizes: Side in pixels of the network's input, where it differs from ``default_size``.
    """

    license = "CC-BY-NC-SA-4.0"
    # Only pre-training uses the mask token.
    ignored = (*_HEADS, "mask_token")
    patch = 16
    default_size = 512
    default_fill = 0.5
    family = "DUSt3R trunk"
    sources: ClassVar[Mapping[str, Source]]
    sizes: ClassVar[Mapping[str, int]] = {"tiny": 224}

    Options: ClassVar[type[Options]] = PairOptions
    options: PairOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        if self.options.image_geometry == "official" and self.options.fit != "keep":
            raise ConfigError(
                f"Teacher {self.name!r}: image_geometry='official' crops by itself, and fit={self.options.fit!r} would "
                "have no effect.",
                "Leave out one of the two.",
            )

    # -------------------------------------------------------------------------------------------------------- settings

    @property
    def official(self) -> Source:
        return self.sources.get(self.options.config, self.source)

    @property
    def not_needed(self) -> tuple[str, ...]:
        return self.ignored if self._decodes else (*self.ignored, *_DECODER)

    @property
    def backbone_config(self) -> DUSt3RConfig:
        sizes: DUSt3RConfig = super().backbone_config
        if not self._decodes:
            return sizes.encoder_only()
        return sizes.with_shared_decoder() if self.options.decoders == "shared" else sizes

    @property
    def side(self) -> int:
        return self.options.size or self.sizes.get(self.options.config, self.default_size)

    @property
    def num_layers(self) -> int:
        sizes = self.backbone_config
        return sizes.dec_layers if self._decodes else sizes.enc_layers

    def dim(self, layer: int) -> int:
        sizes = self.backbone_config
        widths = {"encoder": sizes.enc_dim, "decoder": sizes.dec_dim, "both": sizes.enc_dim + sizes.dec_dim}
        return widths[self.options.target]

    @property
    def _decodes(self) -> bool:
        return self.options.target != "encoder"

    @property
    def _residual(self) -> torch.dtype:
        return torch.bfloat16 if self.options.residual == "bfloat16" else torch.float32

    # --------------------------------------------------------------------------------------------------------- network

    def build(self) -> PairBackbone:
        return PairBackbone(self.backbone_config)

    def load(self, device: torch.device) -> nn.Module:
        try:
            return super().load(device)
        except CheckpointError as error:
            if re.search(r"missing \(\d+\): dec_blocks2\.0\.", error.message):
                raise CheckpointError(
                    error.message,
                    "If it is a checkpoint with one decoder for both views (CroCo), say so with decoders='shared'; "
                    "for its encoder alone use target='encoder'. Else it is the wrong file, or an incomplete one.",
                ) from error
            raise

    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images in [0, 1] to ``(b, v, rows, columns, d)`` for each layer."""
        # The only place that maps [0, 1] to [-1, 1].
        features: list[Tensor] = backbone(images * 2 - 1, layers, self.options.target, self._residual)
        return features

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        product = next(backbone.parameters()).element_size()
        return working_bytes(
            self.backbone_config, self.options.target, shape, layers, product=product, residual=self._residual.itemsize
        )

    # -------------------------------------------------------------------------------------------------------- images

    def placement(self, view: Size) -> Placement:
        if self.options.image_geometry == "official":
            return official_placement(view, self.side, self.patch, square_ok=self.options.square_ok)
        return super().placement(view)

    def paint(self, images: Tensor, placement: Placement) -> Tensor:
        """Resize images ``(..., 3, h, w)`` in [0, 1] and place them on their canvas: ``(..., 3, *canvas)``."""
        if not self.options.antialias:
            return super().paint(images, placement)
        # The released loader uses Lanczos where the longer side shrinks, and bicubic where it grows.
        kernel: Kernel = "lanczos" if max(images.shape[-2:]) > max(placement.scaled) else "bicubic"
        scaled = resize(images.float().flatten(0, -4), placement.scaled, kernel)
        return canvas_of(scaled, placement, self.fill).reshape(*images.shape[:-2], *placement.canvas)


def _hub(name: str) -> Source:
    return Source(f"naver/{name}")


class DUSt3RTeacher(PairTeacher):
    """DUSt3R (Wang et al., 2024, arXiv 2312.14132)."""

    name = "dust3r"
    sources: ClassVar[Mapping[str, Source]] = {
        config: _hub(f"DUSt3R_ViTLarge_BaseDecoder_{config.replace('-', '_')}")
        for config in ("512-dpt", "512-linear", "224-linear")
    }
    source = sources["512-dpt"]
    # The checkpoints differ only in their heads, which are not loaded.
    configs: ClassVar[Mapping[str, Options]] = {**dict.fromkeys(sources, FULL), "tiny": TINY}
    sizes: ClassVar[Mapping[str, int]] = {"224-linear": 224, "tiny": 224}

    Options: ClassVar[type[Options]] = DUSt3ROptions
    options: DUSt3ROptions


class MASt3RTeacher(PairTeacher):
    """MASt3R (Leroy et al., 2024, arXiv 2406.09756)."""

    name = "mast3r"
    source = _hub("MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric")
    sources: ClassVar[Mapping[str, Source]] = {"full": source}
    configs: ClassVar[Mapping[str, Options]] = {"full": FULL, "tiny": TINY}
