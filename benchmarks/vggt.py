"""What VGGT's backbone costs, by layer, size and precision; with random weights, which cost the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.randomize import randomize
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import FULL, TINY, VggtConfig
from torch import Tensor

from benchmarks.pairs import interleave
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, row

REDUCED_CONFIG = VggtConfig(
    dim=384, heads=6, num_layers=8, hidden=1536, embed_heads=6, embed_layers=8, embed_hidden=1536
)  # fmt: skip


@dataclass(frozen=True)
class VggtCost:
    """Times of one size of the backbone.

    Attributes:
        name: Of the report.
        config: Sizes.
        pairs: Timed pairs for each row.
        judged: Whether the targets, which are set for the full size, apply.
    """

    name: str
    config: VggtConfig
    pairs: int
    judged: bool

    def steps(self, *, quick: bool) -> int:
        return 3 * self._pairs(quick) + 1

    def run(self, *, quick: bool, advance: Callable[[], None]) -> Report:
        config = TINY if quick else self.config
        side, small = (56, 28) if quick else (518, 224)
        backbone = backbone_with_random_weights(config)
        large, little = random_images(side), random_images(small)
        forward(backbone, little, config.num_layers)
        advance()

        def compare(what: str, base: Callable[[], Any], other: Callable[[], Any], limit: float) -> Row:
            found = interleave(base, other, pairs=self._pairs(quick), warmup=0, seed=0, advance=advance)
            judge = {"target": f"at most {limit}", "judge": at_most(limit)} if self.judged else {}
            return row(what, found, **judge)  # type: ignore[arg-type]

        last, half = config.num_layers, config.num_layers // 2
        rows = [
            compare(
                f"layer {half} over layer {last}",
                lambda: forward(backbone, large, last), lambda: forward(backbone, large, half), 0.68,
            ),
            compare(
                f"{small} px over {side} px",
                lambda: forward(backbone, large, last), lambda: forward(backbone, little, last), 0.17,
            ),
        ]  # fmt: skip
        coarse = backbone_with_random_weights(config)
        cast_products(coarse, torch.bfloat16)
        rows.append(
            compare(
                "bfloat16 products over float32",
                lambda: forward(backbone, large, last), lambda: forward(coarse, large, last), 0.65,
            )
        )  # fmt: skip
        rows += self._agreement(forward(backbone, large, last), coarse, large)
        return Report(
            name=self.name,
            title=f"VGGT's backbone{' at full size' if self.judged else ', reduced'}: time of a forward",
            rows=rows,
            conditions={
                "sizes": about(config),
                "views": "2 of one sample",
                "side": f"{side} px",
                "weights": "random, every branch of the scale of its input",
                "pairs": self._pairs(quick),
                "threads": torch.get_num_threads(),
            },
        )

    def _pairs(self, quick: bool) -> int:
        return 1 if quick else self.pairs

    def _agreement(self, wanted: Tensor, coarse: Aggregator, images: Tensor) -> list[Row]:
        """Cosine of each token with float32's."""
        rows = []
        for what, dtype in (("bfloat16 products", torch.float32), ("and a bfloat16 stream", torch.bfloat16)):
            coarse.residual = dtype
            cosine = F.cosine_similarity(forward(coarse, images, coarse.config.num_layers).float(), wanted, dim=-1)
            lowest = float(cosine.min())
            judged = {"target": "above 0.999", "verdict": "met" if lowest > 0.999 else "missed"} if self.judged else {}
            judged = {} if dtype == torch.bfloat16 else judged
            text = f"lowest {lowest:.6f}, mean {float(cosine.mean()):.6f}"
            rows.append(Row(f"cosine of each token with float32: {what}", text, **judged, data={"lowest": lowest}))
        return rows


def backbone_with_random_weights(config: VggtConfig) -> Aggregator:
    """The same weights for the same sizes."""
    backbone = Aggregator(config).eval().requires_grad_(False)
    randomize(backbone)
    return backbone


def random_images(side: int) -> Tensor:
    """One sample of two views."""
    return torch.rand(1, 2, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def forward(backbone: Aggregator, images: Tensor, layer: int) -> Tensor:
    """Patch features of one layer."""
    found: Tensor = backbone(images, [layer], tokens="patch")[0]
    return found


def about(config: VggtConfig) -> str:
    """The sizes in words."""
    return (
        f"{config.embed_layers} blocks of the embedder, "
        f"{config.num_layers} frame and {config.num_layers} global blocks, "
        f"{config.dim} wide"
    )


REDUCED = VggtCost("vggt", REDUCED_CONFIG, pairs=5, judged=False)
AT_FULL_SIZE = VggtCost("vggt-full", FULL, pairs=2, judged=True)
