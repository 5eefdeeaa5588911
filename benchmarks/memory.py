"""What alignment keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.policies import Subject, demo_smolvla, wide_smolvla
from benchmarks.report import Report, Row
from sfkit import SpatialForcing

_LIMIT = 3.0


@dataclass
class Saved:
    """Storages that autograd saved, each counted once, by the part of the step that saved it first.

    Parameters are left out: they are in memory anyway. The storages are held, so that no address is used twice.
    """

    parameters: frozenset[int]
    bytes: dict[str, int] = field(default_factory=dict)
    part: str = "policy"
    held: dict[int, Any] = field(default_factory=dict)

    def see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.parameters and address not in self.held:
            self.held[address] = storage
            self.bytes[self.part] = self.bytes.get(self.part, 0) + storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


def saved_by_forward(policy: nn.Module, batch: Any, *, run: Callable[[Any], Any] | None = None) -> Saved:
    """What one training forward saves, split into the policy, sfkit's projectors, and the rest of the alignment.

    Args:
        policy: The policy.
        batch: What it is called with.
        run: How it is called, where that takes more than the call.
    """
    saved = Saved(frozenset(parameter.untyped_storage().data_ptr() for parameter in policy.parameters()))
    handle = SpatialForcing.of(policy)
    parts: dict[str, list[nn.Module]] = {}
    if handle is not None:
        parts = {"alignment": [handle], "projector": [pair.projector for pair in handle.pairs]}
    torch.manual_seed(0)
    with _told_apart(saved, parts), torch.autograd.graph.saved_tensors_hooks(saved.see, lambda tensor: tensor):
        (run or policy)(batch)
    return saved


@contextmanager
def _told_apart(saved: Saved, parts: dict[str, list[nn.Module]]) -> Iterator[None]:
    outer: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            outer.append(saved.part)
            saved.part = name

        return hook

    def leave(*_: object) -> None:
        saved.part = outer.pop()

    hooks = []
    for name, modules in parts.items():
        for module in modules:
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def measure(subject: Subject, what: str) -> list[Row]:
    """Bytes beyond the plain step, the projector's aside, as a multiple of the tapped visual tokens in float32."""
    plain = saved_by_forward(subject.copy(), subject.batch).total
    policy = SpatialForcing.wrap(subject.copy(), ("geometry", {"calibration_steps": 0}), cameras=subject.cameras)
    policy(subject.batch)  # the first batch also checks
    wrapped = saved_by_forward(policy, subject.batch)
    tokens = _tapped_token_bytes(policy, len(subject.batch["action"]))
    projector, alignment = (wrapped.bytes.get(part, 0) for part in ("projector", "alignment"))
    beyond = wrapped.total - plain - projector
    parts = {
        "the tapped visual tokens in float32": tokens,
        "saved by the alignment, its projector aside": alignment,
        "saved by the rest of the step, beyond plain": beyond - alignment,
        "saved in the projector, with the tokens given to it": projector,
        "saved by the plain step": plain,
    }
    verdict = "met" if beyond <= _LIMIT * tokens else "missed"
    data = {"ratio": beyond / tokens, "bytes": parts}
    headline = Row(
        f"{what}: multiple of the tapped tokens", f"{beyond / tokens:.3f}", f"at most {_LIMIT:g}", verdict, data=data
    )
    return [headline, *(Row(f"{what}: {part}", f"{count / 2**20:.3f} MiB") for part, count in parts.items())]


def _tapped_token_bytes(policy: Any, batch: int) -> int:
    adapter, layer = policy.spatial_forcing.adapter, policy.spatial_forcing.pairs[0].site.student_layer
    width, height = policy.config.resize_imgs_with_padding
    rows, columns = adapter.layout((height, width)).grid
    floats: int = batch * len(policy.config.image_features) * rows * columns * adapter.dim(layer)
    return 4 * floats


def steps(*, quick: bool) -> int:
    return 2


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    wide, demo = wide_smolvla(quick=quick), demo_smolvla(2 if quick else 16)
    rows: list[Row] = []
    for subject, what in ((wide, "SmolVLA-450M's widths"), (demo, "demonstration")):
        rows += measure(subject, what)
        advance()
    return Report(
        name="memory",
        title="Bytes saved for the backward pass, by the geometry teacher's alignment",
        rows=rows,
        conditions={
            "SmolVLA-450M's widths": wide.about(),
            "demonstration": demo.about(),
            "counted": "each storage once, by whoever saved it first; parameters are left out",
        },
    )
