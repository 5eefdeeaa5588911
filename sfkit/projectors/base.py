"""The projector interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sfkit.registry.component import AnyOptions, Configurable

#: The most hidden units; more come from files that are to fill the memory.
WIDEST = 2**14


class Projector(Configurable, nn.Module, ABC):
    """A trained map from ``student_dim`` to ``teacher_dim`` channels over grids.

    Its input has the shape of the grid, so that a convolution can work view by view. The core builds it under a random
    generator of its own, and keeps its parameters in float32 when the policy is cast.

    Attributes:
        shallow_first: Class attribute: whether pairs that share it must come with ascending student layers.
    """

    shallow_first: ClassVar[bool] = False

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__()
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        self.configure(options)

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Project.

        Args:
            tokens: ``(b, v, gh, gw, student_dim)`` float32, zero where masked; not to be changed in place.
            mask: ``(b, v, gh, gw)`` bool.

        Returns:
            ``(b, v, gh, gw, teacher_dim)`` float32.
        """

    def forward_shared(self, tokens: Tensor, mask: Tensor, index: int, count: int) -> Tensor:
        """As :meth:`forward`, ``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``, for one of several pairs.

        Args:
            tokens: As in :meth:`forward`.
            mask: ``(b, v, gh, gw)`` bool.
            index: The number of the pair, from 0.
            count: How many pairs share this projector.
        """
        projected: Tensor = self(tokens, mask)
        return projected


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer with Xavier-uniform weights and a zero bias, if it has one."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
