"""Sizes of the backbone, and the options of the teachers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from sfkit_backbones.teacher import BackboneOptions
from typing_extensions import Self

from sfkit.config import Options
from sfkit.registry.component import Harmless

Target = Literal["encoder", "decoder", "both"]


class DUSt3RConfig(Options):
    """Sizes of the backbone; the defaults are those of all released checkpoints."""

    patch: int = Field(default=16, ge=1, le=2**14, description="Side of a patch in pixels.")
    enc_dim: int = Field(default=1024, ge=1, le=2**14, description="Width of the encoder.")
    enc_layers: int = Field(default=24, ge=1, le=256, description="Blocks of the encoder.")
    enc_heads: int = Field(default=16, ge=1, le=2**14, description="Heads of the encoder.")
    enc_hidden: int = Field(default=4096, ge=1, le=2**14, description="Width inside the encoder's MLP.")
    dec_dim: int = Field(default=768, ge=1, le=2**14, description="Width of the decoder.")
    dec_layers: int = Field(default=12, ge=0, le=256, description="Layers of the decoder; 0 for an encoder alone.")
    dec_heads: int = Field(default=12, ge=1, le=2**14, description="Heads of the decoder.")
    dec_hidden: int = Field(default=3072, ge=1, le=2**14, description="Width inside the decoder's MLP.")
    shared_decoder: bool = Field(default=False, description="Both views go through one stack of decoder layers.")

    def encoder_only(self) -> Self:
        """The same encoder without a decoder."""
        return self.model_copy(update={"dec_layers": 0})

    def with_shared_decoder(self) -> Self:
        """The same backbone with one stack of decoder layers for both views."""
        return self.model_copy(update={"shared_decoder": True})


FULL = DUSt3RConfig()
TINY = DUSt3RConfig(
    enc_dim=32, enc_layers=2, enc_heads=2, enc_hidden=128, dec_dim=24, dec_layers=3, dec_heads=2, dec_hidden=96
)


class PairOptions(BackboneOptions):
    """Options of both teachers."""

    target: Target = Field(
        default="decoder",
        description="Features of the encoder (layers 1 to 24), of the decoder (1 to 12), or both: the encoder's last "
        "layer concatenated with the decoder's layer.",
    )
    image_geometry: Literal["whole", "official"] = Field(
        default="whole",
        description="whole: the whole view, as `fit` says. official: crop as the released loader does, and mask the "
        "cropped cells.",
    )
    square_ok: Harmless[bool] = Field(
        default=False, description="With the official image geometry of the 512 models: do not crop a square to 4:3."
    )
    decoders: Literal["two", "shared"] = Field(
        default="two", description="shared: one decoder for both views, for checkpoints without dec_blocks2 (CroCo)."
    )


class DUSt3ROptions(PairOptions):
    """Options of the teacher ``dust3r``."""

    config: Harmless[str] = Field(
        default="512-dpt",
        description="Checkpoint: '512-dpt', '512-linear' or '224-linear'; 'tiny' has random weights, for dry runs.",
    )
