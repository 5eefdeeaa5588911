"""Compare a port with the recorded outputs of a fixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.registry.registry import default_registry
from sfkit.testing.checks import ROUNDING, float64, relative_difference, widened
from sfkit_backbones.parity.base import Parity
from sfkit_backbones.parity.fixture import Fixture


@dataclass(frozen=True)
class Difference:
    """Difference of one output of one case.

    Attributes:
        case: Name of the case.
        output: Name of the output.
        largest: Largest absolute difference of our float64 output from the record; infinite where the shapes differ, a
            value is NaN, or our float32 output is worse than rounding explains.
        scale: Largest absolute value of the record.
        note: Any fault other than the size of the difference; else empty.
        rounding: Difference of our float32 from our float64 output, in parts of the largest value.
    """

    case: str
    output: str
    largest: float
    scale: float
    note: str = ""
    rounding: float = 0.0

    @property
    def error(self) -> float:
        """The difference in parts of ``scale``; the tolerance applies to it."""
        return self.largest / self.scale if self.scale else self.largest


def parity_of(model: str) -> Parity:
    """The registered reader for the fixtures of a model.

    Raises:
        UnknownNameError: No plugin registers one.
    """
    reader: Parity = default_registry().get("parity", model).load()()
    return reader


@torch.no_grad()
def compare(fixture: Fixture, seen: Callable[[Difference], None] = lambda difference: None) -> list[Difference]:
    """Run the fixture's model on the fixture's inputs and compare every output, on the CPU.

    The compared outputs are computed in float64: only the record's own rounding remains, and every processor gets the
    same difference. The float32 outputs are compared with float64: see :mod:`sfkit.testing.checks`.

    Args:
        fixture: The fixture.
        seen: Called with each difference as soon as it is known.

    Raises:
        UnknownNameError: No installed plugin registers the fixture's model.
        CheckpointError: The fixture's state dict does not fit the backbone.
    """
    reader = parity_of(fixture.model)
    found: list[Difference] = []
    with float64():
        exact = {name: dict(outputs) for name, outputs in reader.outputs(widened(fixture))}

    def hold(name: str, outputs: Mapping[str, Tensor]) -> None:
        for key, wanted in fixture.cases[name].outputs.items():
            found.append(_difference(name, key, exact.get(name, {}).get(key), outputs.get(key), wanted))
            seen(found[-1])

    left = dict(fixture.cases)
    for name, outputs in reader.outputs(fixture):
        left.pop(name)
        hold(name, outputs)
    for name in left:
        hold(name, {})
    return found


def _difference(case: str, output: str, exact: Tensor | None, ours: Tensor | None, wanted: Tensor) -> Difference:
    """Compare float64 and float32 outputs with the record, all of one shape ``(...,)``; None is a missing output."""
    scale = float(wanted.abs().max())
    if ours is None or exact is None:
        return Difference(case, output, torch.inf, scale, "not given")  # the reader lacks this output
    if ours.shape != wanted.shape or exact.shape != wanted.shape:
        return Difference(case, output, torch.inf, scale, f"shape {tuple(ours.shape)}, not {tuple(wanted.shape)}")
    largest, rounding = float((exact - wanted.double()).abs().max()), relative_difference(ours, exact)
    if math.isnan(largest + rounding):
        return Difference(case, output, torch.inf, scale, "NaN")
    if rounding > ROUNDING[ours.dtype]:
        note = f"in float32 off by {rounding:.1e} of the largest value: more than rounding"
        return Difference(case, output, torch.inf, scale, note, rounding)
    return Difference(case, output, largest, scale, rounding=rounding)
