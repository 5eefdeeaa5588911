"""What share of a GPU's own speed at matrix products VGGT's backbone reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.randomize import randomize
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import FULL, TINY, VggtConfig

from benchmarks.report import Report, Row
from benchmarks.vggt import about

_LIMIT = 0.5
_BATCH, _VIEWS = 8, 2


def steps(*, quick: bool) -> int:
    return 3


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    config, side = (TINY, 56) if quick else (FULL, 518)
    conditions = {"sizes": about(config), "batch": f"{_BATCH} samples of {_VIEWS} views of {side} px"}
    if not torch.cuda.is_available():
        return Report("vggt-gpu", "VGGT's backbone on a GPU", [Row("not measured", "no CUDA device")], conditions)
    peak = _matrix_product_speed()
    advance()
    backbone = Aggregator(config)
    randomize(backbone)
    backbone = backbone.cuda().eval().requires_grad_(False)
    cast_products(backbone, torch.bfloat16)
    images = torch.rand(_BATCH, _VIEWS, 3, side, side, device="cuda")
    work = flops(config, _BATCH, _VIEWS, side)
    rows = [Row("bfloat16 matrix products alone", f"{peak / 1e12:.0f} TFLOP/s", data={"flops": peak})]
    for compiled in (False, True):
        if compiled:
            for block in [*backbone.patch_embed.blocks, *backbone.frame_blocks, *backbone.global_blocks]:
                block.compile()
        seconds = _seconds(lambda: backbone(images, [config.num_layers], tokens="patch"))
        share = work / seconds / peak
        what = f"share of it that a forward reaches{', compiled' if compiled else ''}"
        verdict = "met" if share >= _LIMIT else "missed"
        rows.append(Row(what, f"{share:.2f}", f"at least {_LIMIT}", verdict, data={"seconds": seconds}))
        advance()
    device = torch.cuda.get_device_name()
    return Report("vggt-gpu", "VGGT's backbone on a GPU", rows, {**conditions, "device": device})


def flops(config: VggtConfig, batch: int, views: int, side: int) -> float:
    """Of matrix products and the patch convolution in one forward to the last layer; two for each multiply-add.

    For a block over sequences of ``n`` tokens, ``c`` wide: ``n * (8 c^2 + 4 c hidden) + 4 n^2 c``.
    """

    def block(n: int, hidden: int) -> float:
        return n * (8 * config.dim**2 + 4 * config.dim * hidden) + 4 * n**2 * config.dim

    patches = (side // config.patch) ** 2
    embed, own = patches + 1 + config.embed_registers, patches + 1 + config.registers
    a_view = 2 * patches * 3 * config.patch**2 * config.dim
    a_view += config.embed_layers * block(embed, config.embed_hidden) + config.num_layers * block(own, config.hidden)
    return batch * (views * a_view + config.num_layers * block(views * own, config.hidden))


def _matrix_product_speed(side: int = 8192) -> float:
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b)


@torch.inference_mode()
def _seconds(work: Callable[[], object], runs: int = 10) -> float:
    """Of one run, after three to warm up."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs
