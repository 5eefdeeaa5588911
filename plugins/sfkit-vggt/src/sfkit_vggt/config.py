"""Sizes of VGGT's backbone."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from sfkit.config import Options


class VggtConfig(Options):
    """Sizes of the backbone; the defaults are those of VGGT-1B."""

    dim: int = Field(default=1024, ge=4, le=2**14, description="Width of the embedder and of the alternating blocks.")
    heads: int = Field(default=16, ge=1, le=2**14, description="Heads of the alternating blocks.")
    num_layers: int = Field(default=24, ge=1, le=256, description="Pairs of a frame block and a global block.")
    hidden: int = Field(default=4096, ge=1, le=2**14, description="Width inside their MLPs.")
    registers: int = Field(default=4, ge=0, le=2**14, description="Register tokens of each view.")
    embed_heads: int = Field(default=16, ge=1, le=2**14, description="Heads of the embedder.")
    embed_layers: int = Field(default=24, ge=0, le=256, description="Blocks of the embedder.")
    embed_hidden: int = Field(default=4096, ge=1, le=2**14, description="Width inside its MLPs.")
    embed_registers: int = Field(
        default=4, ge=0, le=2**14, description="Register tokens of the embedder, which it keeps."
    )
    patch: int = Field(default=14, ge=1, le=2**14, description="Side of a patch in pixels.")
    native: int = Field(
        default=518, ge=1, le=2**14, description="Side in pixels of the square that the position table is for."
    )

    @property
    def native_side(self) -> int:
        """Side of the position table in patches."""
        return self.native // self.patch

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.dim % self.heads or self.dim // self.heads % 4:
            raise ValueError(f"{self.heads} heads of dim {self.dim}: a head must have a multiple of 4 channels")
        if self.dim % self.embed_heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.embed_heads} heads of the embedder")
        if self.native % self.patch:
            raise ValueError(f"native size {self.native} is no multiple of the patch, {self.patch}")
        return self


#: VGGT-1B: 909,112,320 values.
FULL = VggtConfig()

#: Sizes for tests and dry runs, with random weights.
TINY = VggtConfig(
    dim=24, heads=2, num_layers=4, hidden=48, embed_heads=3, embed_layers=2, embed_hidden=48, native=56
)  # fmt: skip
