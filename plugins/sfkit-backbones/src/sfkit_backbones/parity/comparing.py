"""Comparing with a fixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfkit.registry import default_registry
from sfkit_backbones.parity.base import Parity
from sfkit_backbones.parity.fixture import Fixture


@dataclass(frozen=True)
class Difference:
    """Of one output of one case.

    Attributes:
        case: Name of the case.
        output: Name of the output.
        largest: Largest absolute difference; infinite where the shapes differ or a value is NaN.
        scale: Largest absolute value of the reference.
        note: What is wrong beside the size of the difference; else empty.
        relative: Whether the family's differences count in parts of ``scale``.
    """

    case: str
    output: str
    largest: float
    scale: float
    note: str = ""
    relative: bool = False

    @property
    def error(self) -> float:
        """What is held against the tolerance."""
        return self.largest / self.scale if self.relative and self.scale else self.largest


def parity_of(model: str) -> Parity:
    """The reader for a family of fixtures.

    Raises:
        UnknownNameError: No plugin knows it.
    """
    reader: Parity = default_registry().get("parity", model).load()()
    return reader


@torch.no_grad()
def compare(fixture: Fixture, seen: Callable[[Difference], None] = lambda difference: None) -> list[Difference]:
    """Feed what the fixture describes its inputs and compare every output, in float32 on the CPU.

    Args:
        fixture: The fixture.
        seen: Called with each difference as soon as it is known.

    Raises:
        UnknownNameError: Nothing installed knows the fixture's model.
        CheckpointError: Its state dict does not fit the backbone.
    """
    reader = parity_of(fixture.model)
    found: list[Difference] = []

    def hold(name: str, outputs: Mapping[str, Tensor]) -> None:
        for key, wanted in fixture.cases[name].outputs.items():
            difference = _difference(name, key, outputs.get(key), wanted)
            found.append(replace(difference, relative=reader.relative))
            seen(found[-1])

    left = dict(fixture.cases)
    for name, outputs in reader.outputs(fixture):
        left.pop(name)
        hold(name, outputs)
    for name in left:
        hold(name, {})
    return found


def _difference(case: str, output: str, ours: Tensor | None, wanted: Tensor) -> Difference:
    scale = float(wanted.abs().max())
    if ours is None:
        return Difference(case, output, torch.inf, scale, "not given")
    if ours.shape != wanted.shape:
        return Difference(case, output, torch.inf, scale, f"shape {tuple(ours.shape)}, not {tuple(wanted.shape)}")
    largest = float((ours.double() - wanted.double()).abs().max())
    if largest != largest:  # noqa: PLR0124 - NaN compares as larger than no tolerance
        return Difference(case, output, torch.inf, scale, "NaN")
    return Difference(case, output, largest, scale)
