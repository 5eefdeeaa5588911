"""Comparing a trunk with a fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.parity.base import TrunkParity
from sfkit.parity.fixture import STATE, Fixture
from sfkit.registry import default_registry
from sfkit.trunks.weights import load_weights, without_weights


@dataclass(frozen=True)
class Difference:
    """Of one output of one case.

    Attributes:
        case: Name of the case.
        output: Name of the output.
        largest: Largest absolute difference; infinite where the shapes differ or a value is NaN.
        scale: Largest absolute value of the reference.
        note: What is wrong beside the size of the difference; else empty.
    """

    case: str
    output: str
    largest: float
    scale: float
    note: str = ""


def parity_of(model: str) -> TrunkParity:
    """The reader for a family of trunks.

    Raises:
        UnknownNameError: No plugin knows it.
    """
    reader: TrunkParity = default_registry().get("parity", model).load()()
    return reader


@torch.inference_mode()
def compare(fixture: Fixture, seen: Callable[[Difference], None] = lambda difference: None) -> list[Difference]:
    """Rebuild the fixture's model, feed it the inputs and compare every output, in float32 on the CPU.

    Args:
        fixture: The fixture.
        seen: Called with each difference as soon as it is known.

    Raises:
        UnknownNameError: Nothing installed knows the fixture's model.
        CheckpointError: Its state dict does not fit the trunk.
    """
    reader = parity_of(fixture.model)
    with without_weights():
        trunk = reader.build(fixture.config, fixture.shapes)
    cases = [f"{name}.{side}.*" for name in fixture.cases for side in ("in", "out")]
    ignored = [*cases, *(STATE + pattern for pattern in reader.ignored)]
    load_weights(trunk, fixture.path, prefix=STATE + reader.prefix, ignored=ignored)
    trunk.eval()
    found = []
    for name, case in fixture.cases.items():
        outputs = reader.run(trunk, name, case.inputs, list(case.outputs))
        for key, wanted in case.outputs.items():
            found.append(_difference(name, key, outputs.get(key), wanted))
            seen(found[-1])
    return found


def _difference(case: str, output: str, ours: Tensor | None, wanted: Tensor) -> Difference:
    scale = float(wanted.abs().max())
    if ours is None:
        return Difference(case, output, torch.inf, scale, "the trunk does not give it")
    if ours.shape != wanted.shape:
        return Difference(case, output, torch.inf, scale, f"shape {tuple(ours.shape)}, not {tuple(wanted.shape)}")
    largest = float((ours.double() - wanted.double()).abs().max())
    if largest != largest:  # noqa: PLR0124 - NaN compares as larger than no tolerance
        return Difference(case, output, torch.inf, scale, "NaN")
    return Difference(case, output, largest, scale)
