"""What the alignment itself costs, beside the matrix products of its projectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from benchmarks.pairs import interleave
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, row
from sfkit.config import Recompute
from sfkit.objectives.distances import CosineObjective
from sfkit.projectors.base import Projector
from sfkit.projectors.standard import MLPProjector, NestedProjector, nested_widths
from sfkit.training.pair import AlignmentPair
from sfkit.views.types import FeatureMap

_LIMIT, _LIMIT_OF_TEN = 1.25, 1.15
_PAIRS = 10


@dataclass(frozen=True)
class _Size:
    batch: int = 8
    views: int = 3
    side: int = 16
    width: int = 2048

    @property
    def grid(self) -> tuple[int, int, int, int]:
        return self.batch, self.views, self.side, self.side


def steps(*, quick: bool) -> int:
    return 4 * (2 + 1) if quick else 2 * (12 + 2) + (5 + 2) + (3 + 1)


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    size = _Size(batch=2, views=2, side=4, width=32) if quick else _Size()
    pairs, warmup, of_ten, again = (2, 1, 2, 2) if quick else (12, 2, 5, 3)
    maps = _student_and_teacher(size)
    one = MLPProjector(size.width, size.width)
    core = NestedProjector(size.width, size.width)
    ten = [_pair(core, (index, _PAIRS)) for index in range(_PAIRS)]
    widths = nested_widths(_PAIRS, size.width)

    def measure(what: str, base: Callable[[], None], other: Callable[[], None], runs: int, limit: float = 0) -> Row:
        found = interleave(base, other, pairs=runs, warmup=min(warmup, runs // 2), seed=0, advance=advance)
        if not limit:
            return row(what, found)
        return row(what, found, target=f"at most {limit:.2f}", judge=at_most(limit))

    products, products_of_ten = _products(maps[0], [size.width]), _products(maps[0], widths)
    rows = [
        measure("cosine and MLP", products, _aligned(maps, [_pair(one)]), pairs, _LIMIT),
        measure("the same, sample by sample as released", products, _one_by_one(maps, one), pairs),
        measure(
            "ten pairs on a nested projector", products_of_ten, _aligned(maps, ten, "selective"), of_ten, _LIMIT_OF_TEN
        ),
        measure("the same, all made again in backward", products_of_ten, _aligned(maps, ten, "full"), again),
    ]
    return Report(
        name="alignment",
        title="Alignment, forward and backward, over the projector's matrix products alone",
        rows=rows,
        conditions={
            "tokens": " x ".join(map(str, size.grid)),
            "width": size.width,
            "hidden units of the ten": ", ".join(map(str, widths)),
            "threads": torch.get_num_threads(),
        },
    )


def _pair(projector: Projector, shared: tuple[int, int] | None = None) -> AlignmentPair:
    pair = AlignmentPair(projector, CosineObjective())
    pair.connect(projector, shared)
    return pair


def _student_and_teacher(size: _Size) -> tuple[FeatureMap, FeatureMap]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(size.grid, dtype=torch.bool)
    student, teacher = (torch.randn(*size.grid, size.width, generator=generator) for _ in range(2))
    return FeatureMap(student.requires_grad_(), mask), FeatureMap(teacher, mask)


def _products(student: FeatureMap, widths: Sequence[int]) -> Callable[[], None]:
    """The two linear maps of each pair, and nothing else."""
    tokens, dim = student.values, student.dim
    first, second = (torch.randn(dim, dim).mul_(dim**-0.5).requires_grad_() for _ in range(2))
    gradient = torch.randn(tokens.shape)

    def step() -> None:
        for width in widths:
            F.linear(F.linear(tokens, first[:width]), second[:, :width]).backward(gradient)
        _forget(tokens, first, second)

    return step


def _aligned(
    maps: tuple[FeatureMap, FeatureMap], pairs: Sequence[AlignmentPair], recompute: Recompute = "none"
) -> Callable[[], None]:
    def step() -> None:
        for pair in pairs:
            pair.recompute = recompute
            pair(*maps).loss.mean().backward()
        _forget(maps[0].values, *(weight for pair in pairs for weight in pair.parameters()))

    return step


def _one_by_one(maps: tuple[FeatureMap, FeatureMap], projector: MLPProjector) -> Callable[[], None]:
    """One projection of all tokens; then a loop over samples, each of which selects its valid tokens."""
    student, teacher = maps

    def step() -> None:
        projected = projector(student.values, student.mask).flatten(1, 3)
        target, mask = teacher.values.flatten(1, 3), student.mask.flatten(1)
        losses = []
        for ours, wanted, valid in zip(projected, target, mask, strict=True):
            cosine = (F.normalize(ours, dim=-1) * F.normalize(wanted, dim=-1)).sum(-1)
            losses.append(1 - cosine[valid].mean())
        torch.stack(losses).mean().backward()
        _forget(student.values, *projector.parameters())

    return step


def _forget(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.grad = None
