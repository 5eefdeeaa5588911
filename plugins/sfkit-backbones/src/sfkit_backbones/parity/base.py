"""How fixtures of one family are read and run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfkit_backbones.parity.fixture import STATE, Fixture
from sfkit_backbones.weights import load_weights, without_weights


class Parity(ABC):
    """Registered (hook ``register_parity``) under the ``model`` that the fixtures of the family name."""

    @abstractmethod
    def outputs(self, fixture: Fixture) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Run each case of the fixture: its name, and the outputs by name. Called under ``torch.no_grad``.

        Called twice: with inputs in float32, and with the same in float64, where torch's default dtype is float64 too.
        """


class BackboneParity(Parity):
    """Parity of a network whose weights are in the fixture.

    Class attributes:
        prefix: What stands before the backbone's keys in a checkpoint.
        ignored: Patterns of checkpoint keys that the backbone does not need.
    """

    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """The backbone that a fixture describes, without weights.

        Args:
            config: Of the fixture. What it leaves out is told by the shapes.
            shapes: Of the state dict, by checkpoint key.
        """

    @abstractmethod
    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run one case and return the outputs that are wanted, by name.

        A case may ask for an option of the backbone by bearing its name (``bf16_rounded_rope_angles``).
        """

    @abstractmethod
    def describe(self, config: Any) -> dict[str, Any]:
        """The fixture's ``config`` for a backbone of this configuration, without the ``model``."""

    @abstractmethod
    def examples(self, config: Any) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
        """Cases to record: inputs, drawn from torch's global generator, and names of outputs.

        They should cover what ports get wrong: one and several views, grids that are not native and not square.
        """

    def outputs(self, fixture: Fixture) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Rebuild the backbone and run each case.

        Raises:
            CheckpointError: The fixture's state dict does not fit the backbone.
        """
        with without_weights():
            backbone = self.build(fixture.config, fixture.shapes)
        cases = [f"{name}.{side}.*" for name in fixture.cases for side in ("in", "out")]
        ignored = [*cases, *(STATE + pattern for pattern in self.ignored)]
        load_weights(backbone, fixture.path, prefix=STATE + self.prefix, ignored=ignored)
        backbone.to(torch.get_default_dtype()).eval()
        for name, case in fixture.cases.items():
            yield name, self.run(backbone, name, case.inputs, list(case.outputs))
