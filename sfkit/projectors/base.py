"""The projector interface, and how several pairs share a projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from sfkit.config import ComponentSpec
from sfkit.registry.component import AnyOptions, Configurable

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Projector(Configurable, nn.Module, ABC):
    """A trained map from ``student_dim`` to ``teacher_dim`` channels over grids.

    Its input has the shape of the grid, so that a convolution can work view by view. The core builds it under a random
    generator of its own, and keeps its parameters in float32 when the policy is cast.

    Attributes:
        target_transforms: Modules that turn the teacher's features into this projector's target, in order; set by the
            core. They live here because their state belongs to the pair.
        objective_head: The module that the objective trains for this pair, see :meth:`sfkit.Objective.head`; set by the
            core.
        shallow_first: Class attribute: whether pairs that share it must come with ascending student layers.
    """

    shallow_first: ClassVar[bool] = False

    target_transforms: nn.ModuleList
    objective_head: nn.Module | None

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__()
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        self.target_transforms = nn.ModuleList()
        self.objective_head = None
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


def xavier(layer: Layer) -> Layer:
    """The layer with Xavier-uniform weights and a zero bias, if it has one."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class SharedProjector(Projector):
    """The projector of one pair, where several pairs share theirs.

    Target transforms and the objective's head stay the pair's own. The module of the first pair holds the shared one,
    and so registers its parameters once with the optimizer, DDP and checkpoints; the others only refer to it.

    Args:
        core: The projector.
        index: The number of the pair, from 0.
        count: How many pairs share it.
    """

    name = "shared"

    def __init__(self, core: Projector, index: int, count: int) -> None:
        super().__init__(core.student_dim, core.teacher_dim)
        self.index, self.count = index, count
        # nn.Module does not look into a tuple, so the parameters stay out of the other pairs.
        self._elsewhere = () if index == 0 else (core,)
        if index == 0:
            self.core = core

    @property
    def shared(self) -> Projector:
        """The projector that all pairs use."""
        return self._elsewhere[0] if self._elsewhere else self.core

    @property
    def spec(self) -> ComponentSpec:
        core: Configurable = self.shared
        return core.spec

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        return self.shared.forward_shared(tokens, mask, self.index, self.count)


class Unprojected(Projector):
    """The projector of a pair that compares no features; student and teacher may differ in width."""

    name = "none"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` tokens, unchanged."""
        return tokens
