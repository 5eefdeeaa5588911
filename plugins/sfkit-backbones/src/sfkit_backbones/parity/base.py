"""Base classes of the readers of parity fixtures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from sfkit.config import Options
from sfkit_backbones.parity.fixture import STATE, Fixture, JsonObject
from sfkit_backbones.weights import load_weights, without_weights

Config = TypeVar("Config", bound=Options)

#: Inputs and names of the outputs of each case, by the name of the case.
Examples: TypeAlias = "dict[str, tuple[dict[str, Tensor], list[str]]]"


class Parity(ABC):
    """Runs the fixtures of one family of models; the hook ``register_parity`` registers it under their ``model``."""

    @abstractmethod
    def outputs(self, fixture: Fixture) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Run each case: its name, and its outputs by name.

        The comparison calls this twice under ``torch.no_grad``: with inputs in float32, and with inputs and torch's
        default dtype in float64.
        """


class BackboneParity(Parity, Generic[Config]):
    """Parity of a network whose weights are in the fixture.

    Class attributes:
        prefix: Prefix of the backbone's keys in a checkpoint.
        ignored: Patterns of checkpoint keys that the backbone does not need.
    """

    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, config: JsonObject, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """The backbone that a fixture describes, without weights.

        Args:
            config: Settings of the fixture. Sizes that it leaves out follow from ``shapes``.
            shapes: Shapes of the state dict, by checkpoint key.
        """

    @abstractmethod
    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run one case and return the outputs in ``wanted``, by name.

        The name of a case may select an option of the backbone (``bf16_rounded_rope_angles``).
        """

    @abstractmethod
    def describe(self, config: Config) -> JsonObject:
        """The fixture's ``config`` for a backbone of this configuration, without the ``model``."""

    @abstractmethod
    def examples(self, config: Config) -> Examples:
        """Cases to record: inputs from torch's global generator, and names of outputs.

        They should cover common faults of ports: one and several views, grids that are neither native nor square.
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
