"""How fixtures of one family of trunks are read and run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class TrunkParity(ABC):
    """Registered (hook ``register_parity``) under the ``model`` that the fixtures of the family name.

    Class attributes:
        prefix: What stands before the trunk's keys in a checkpoint.
        ignored: Patterns of checkpoint keys that the trunk does not need.
    """

    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """The trunk that a fixture describes, without weights.

        Args:
            config: Of the fixture. What it leaves out is told by the shapes.
            shapes: Of the state dict, by checkpoint key.
        """

    @abstractmethod
    def run(
        self, trunk: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run one case and return the outputs that are wanted, by name.

        A case may ask for an option of the trunk by bearing its name (``bf16_rounded_rope_angles``).
        """

    @abstractmethod
    def describe(self, config: Any) -> dict[str, Any]:
        """The fixture's ``config`` for a trunk of this configuration, without the ``model``."""

    @abstractmethod
    def examples(self, config: Any) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
        """Cases to record: inputs, drawn from torch's global generator, and names of outputs.

        They should cover what ports get wrong: one and several views, grids that are not native and not square.
        """
