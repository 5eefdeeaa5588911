"""What ten pairs on one projector hold, beside what the bare matrix products of the ten hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from benchmarks.live import Live
from benchmarks.report import Report, Row
from sfkit.config import Recompute
from sfkit.objectives.distances import CosineObjective
from sfkit.projectors.standard import NestedProjector, nested_widths
from sfkit.training.pair import AlignmentPair
from sfkit.views.types import FeatureMap

_LIMIT = 1.15
_PAIRS = 10
_MODES: dict[Recompute, str] = {"selective": "ten pairs", "full": "all made again", "none": "nothing made again"}


@dataclass(frozen=True)
class Held:
    """Bytes beside the student's tokens, the teacher's features and the parameters.

    Attributes:
        kept: Between the forward passes of all pairs and their backward passes.
        peak: The most at any time, gradients included.
    """

    kept: int
    peak: int


def steps(*, quick: bool) -> int:
    return 1 + len(_MODES)


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    grid, width = ((2, 2, 8, 8), 64) if quick else ((8, 3, 16, 16), 2048)
    widths = nested_widths(_PAIRS, width)
    products = of_products(grid, width, widths)
    advance()
    rows = []
    for recompute, what in _MODES.items():
        held = of_pairs(grid, width, recompute)
        advance()
        rows += [
            _row(f"{what}: peak", held.peak, products.peak, judged=recompute != "none"),
            _row(f"{what}: kept for backward", held.kept, products.kept, judged=recompute != "none"),
        ]
    return Report(
        name="pairs-memory",
        title="Memory of ten pairs on a nested projector, over that of their bare matrix products",
        rows=rows,
        conditions={
            "tokens": " x ".join(map(str, grid)),
            "width": width,
            "hidden units": ", ".join(map(str, widths)),
            "counted": "storages alive, gradients included; student tokens, teacher features and parameters left out",
            "masked": "one token, so that copies without it are made",
            "ten pairs": "as several pairs are aligned by default",
        },
    )


def of_products(grid: tuple[int, ...], width: int, widths: Sequence[int]) -> Held:
    """All forward passes, and then the backward pass of one after the other, which lets go of its output."""
    students, first, second = (
        [torch.randn(*grid, width).requires_grad_() for _ in widths],
        *(torch.randn(width, width).mul_(width**-0.5).requires_grad_() for _ in range(2)),
    )
    with Live([*students, first, second]) as live:
        outputs = [F.linear(F.linear(x, first[:m]), second[:, :m]) for x, m in zip(students, widths, strict=True)]
        kept = live.now
        gradient = torch.ones_like(outputs[0])
        while outputs:
            outputs.pop().backward(gradient)
    return Held(kept, live.peak)


def of_pairs(grid: tuple[int, ...], width: int, recompute: Recompute) -> Held:
    """The pairs as a policy with ten tapped layers has them: one sum of all losses, and one backward pass."""
    mask = torch.ones(grid, dtype=torch.bool)
    mask.view(-1)[0] = False  # or nothing would be copied on a CPU; on a GPU it always is
    core, objective = NestedProjector(width, width), CosineObjective()
    pairs = [AlignmentPair(None, objective, recompute=recompute) for _ in range(_PAIRS)]
    for index, pair in enumerate(pairs):
        pair.connect(core, (index, _PAIRS))
    maps = [(torch.randn(*grid, width).requires_grad_(), torch.randn(*grid, width)) for _ in pairs]
    with Live([mask, *core.parameters(), *(tensor for both in maps for tensor in both)]) as live:
        losses = [
            pair(FeatureMap(student, mask), FeatureMap(teacher, mask)).loss
            for (student, teacher), pair in zip(maps, pairs, strict=True)
        ]  # fmt: skip
        loss = torch.stack(losses).sum(0).mean()
        kept = live.now
        loss.backward()
    return Held(kept, live.peak)


def _row(what: str, found: int, products: int, *, judged: bool) -> Row:
    ratio = found / products
    data = {"ratio": ratio, "bytes": found, "bytes of the products": products}
    if not judged:
        return Row(what, f"{ratio:.3f}", data=data)
    return Row(what, f"{ratio:.3f}", f"at most {_LIMIT:.2f}", "met" if ratio <= _LIMIT else "missed", data=data)
