"""What alignment itself costs, teacher and projector aside: stand-ins of policies in loops of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from prismatic_loop import Heads, prismatic_batch, prismatic_loss
from tiny_prismatic import tiny_oft, tiny_openvla
from torch import Tensor, nn

from benchmarks.memory import saved_by_forward
from benchmarks.pairs import interleave
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, one_thread, row
from sfkit import SpatialForcing
from sfkit.config import Options
from sfkit.teachers.base import Teacher
from sfkit.views.types import FeatureMap, Views

_LIMIT, _COPIES = 1.05, 3.0


class ConstantOptions(Options):
    """Options of :class:`ConstantTeacher`."""

    width: int


class ConstantTeacher(Teacher):
    """Always the same features: a teacher that costs nothing."""

    name = "constant"
    license = "Apache-2.0"
    Options = ConstantOptions
    options: ConstantOptions
    _kept: Tensor | None = None

    @property
    def num_layers(self) -> int:
        return 1

    def dim(self, layer: int) -> int:
        return self.options.width

    def load(self, device: torch.device) -> None:
        return None

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        shape = (*views.images.shape[:2], *grid)
        if self._kept is None or self._kept.shape[:-1] != shape:
            self._kept = torch.randn(*shape, self.options.width)
        return [FeatureMap(self._kept, torch.ones(shape, dtype=torch.bool))]


@dataclass(frozen=True)
class Standin:
    """A stand-in with the sizes of a benchmark, and its loop.

    Attributes:
        what: For the table.
        make: A policy, always with the same weights.
        heads: What the loop keeps beside the policy.
        batch: One batch.
        tokens: Visual tokens: samples, views, rows, columns, width.
    """

    what: str
    make: Callable[[], Any]
    heads: Callable[[Any], Heads | None]
    batch: dict[str, Any]
    tokens: tuple[int, ...]

    @property
    def width(self) -> int:
        """Of the teacher: half of the decoder's, as VGGT's 2048 beside Llama's 4096."""
        return self.tokens[-1] // 2

    def wrapped(self) -> Any:
        return SpatialForcing.wrap(self.make(), ConstantTeacher({"width": self.width}))

    def loss(self, policy: Any, heads: Heads | None) -> Tensor:
        return prismatic_loss(policy, self.batch, heads=heads, head="l1")


def standins(*, quick: bool) -> list[Standin]:
    """OpenVLA with one image, and OpenVLA-OFT with two, of real token counts and few, narrow blocks."""
    size, samples, width, blocks = (56, 1, 32, 2) if quick else (224, 2, 512, 4)
    side, settings = size // 14, {"image_size": size, "hidden_size": width, "num_hidden_layers": blocks}
    one, two = tiny_openvla(**settings), tiny_oft(images=2, **settings)
    return [
        Standin(
            "OpenVLA", lambda: tiny_openvla(**settings).train(), lambda policy: None,
            prismatic_batch(one.config, b=samples, text=40), (samples, 1, side, side, width),
        ),
        Standin(
            "OpenVLA-OFT, two views, L1", lambda: tiny_oft(images=2, **settings).train(),
            lambda policy: Heads(policy.config),
            prismatic_batch(two.config, b=samples, images=2, text=40), (samples, 2, side, side, width),
        ),
    ]  # fmt: skip


def steps(*, quick: bool) -> int:
    return 2 * (3 if quick else 22)


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    runs, warmup = (3, 1) if quick else (22, 2)
    rows: list[Row] = []
    with one_thread():
        for standin in standins(quick=quick):
            rows += [_time(standin, runs - warmup, warmup, advance), _memory(standin)]
    return Report(
        name="standins",
        title="Training step of stand-ins with a constant teacher, over plain and the projector alone",
        rows=rows,
        conditions={
            "visual tokens (samples, views, rows, columns, width)": {s.what: s.tokens for s in standins(quick=quick)},
            "teacher": "half as wide as the decoder, always the same features",
            "target": f"wrapped at most {_LIMIT} of plain, beyond what the projector alone takes",
            "threads": 1,
        },
    )


def _time(standin: Standin, pairs: int, warmup: int, advance: Callable[[], None]) -> Row:
    policy, alone = standin.wrapped(), _projector_alone(standin.wrapped(), standin)
    plain, wrapped = _step(standin, standin.make()), _step(standin, policy)

    def base() -> None:
        plain()
        alone()

    found = interleave(base, wrapped, pairs=pairs, warmup=warmup, seed=0, advance=advance)
    status = policy.spatial_forcing.status()
    if status.teacher_runs != pairs + warmup or not status.projector_moved:
        raise RuntimeError("the wrapped policy did not align at every step, so this measured something else")
    share = median(_seconds(alone) for _ in range(pairs)) / found.median_seconds("base", "wall")
    limit = 1 + (_LIMIT - 1) * (1 - share)
    measured = row(f"{standin.what}: time", found, target=f"at most {limit:.3f}", judge=at_most(limit))
    measured.data["the projector's share of the base"] = share
    return measured


def _step(standin: Standin, policy: Any) -> Callable[[], None]:
    heads = standin.heads(policy)
    modules = [module for module in (policy, heads) if module is not None]
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        standin.loss(policy, heads).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _projector_alone(policy: Any, standin: Standin) -> Callable[[], None]:
    """The projector's forward and backward, and its update."""
    shape = standin.tokens
    projector = policy.spatial_forcing.pairs[0].projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-5)
    tokens, mask = torch.randn(shape, requires_grad=True), torch.ones(shape[:-1], dtype=torch.bool)
    gradient = torch.randn(*shape[:-1], standin.width)

    def step() -> None:
        projector(tokens, mask).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()
        tokens.grad = None

    return step


def _seconds(action: Callable[[], None]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _memory(standin: Standin) -> Row:
    """Bytes saved for backward beyond the plain step, the projector's aside, in copies of the tapped tokens."""
    plain, policy = standin.make(), standin.wrapped()
    heads = standin.heads(policy)
    standin.loss(policy, heads)  # the first batch also checks
    without, wrapped = (saved_by_forward(p, p, run=lambda p: standin.loss(p, heads)) for p in (plain, policy))
    tokens = 4 * torch.Size(standin.tokens).numel()
    projector = wrapped.bytes.get("projector", 0)
    copies = (wrapped.total - without.total - projector) / tokens
    data = {"ratio": copies, "bytes": {**wrapped.bytes, "plain": without.total, "tapped tokens": tokens}}
    verdict = "met" if copies <= _COPIES else "missed"
    return Row(
        f"{standin.what}: memory, in copies of the tapped tokens", f"{copies:.3f}", f"at most {_COPIES:g}", verdict,
        data=data,
    )  # fmt: skip
