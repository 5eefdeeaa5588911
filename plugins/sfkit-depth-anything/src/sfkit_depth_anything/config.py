"""Sizes of Depth Anything 3's backbone."""

from __future__ import annotations

from pydantic import Field

from sfkit.config import Options


class DepthAnythingConfig(Options):
    """One size of the backbone. Blocks count from 0, as in its code; layer ``k`` is the output of block ``k - 1``."""

    dim: int = Field(ge=1, le=2**14, description="Width.")
    num_layers: int = Field(ge=1, le=256, description="Number of blocks.")
    heads: int = Field(ge=1, le=2**14, description="Attention heads.")
    alt_start: int = Field(
        ge=0, description="First block with rotary positions; odd blocks from here on see all views."
    )
    hidden: int = Field(ge=1, le=2**14, description="Width inside the MLP.")
    swiglu: bool = Field(default=False, description="Gated MLP instead of GELU.")
    side: int = Field(default=37, ge=1, le=2**14, description="Rows and columns of the learned position table.")
    patch: int = Field(default=14, ge=1, le=2**14, description="Side of a patch in pixels.")

    def joins_views(self, block: int) -> bool:
        """Whether a block attends over all views of a sample, instead of within each view."""
        return block >= self.alt_start and block % 2 == 1


SMALL = DepthAnythingConfig(dim=384, num_layers=12, heads=6, alt_start=4, hidden=1536)
BASE = DepthAnythingConfig(dim=768, num_layers=12, heads=12, alt_start=4, hidden=3072)
LARGE = DepthAnythingConfig(dim=1024, num_layers=24, heads=16, alt_start=8, hidden=4096)
GIANT = DepthAnythingConfig(dim=1536, num_layers=40, heads=24, alt_start=13, hidden=4096, swiglu=True)

#: Sizes for tests and dry runs. As in the giant size, the first block over all views of TINY_GATED is ``alt_start``.
TINY = DepthAnythingConfig(dim=32, num_layers=6, heads=2, alt_start=2, hidden=128, side=4)
TINY_GATED = DepthAnythingConfig(dim=32, num_layers=6, heads=2, alt_start=3, hidden=48, swiglu=True, side=3)
