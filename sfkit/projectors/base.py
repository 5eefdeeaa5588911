"""The projector interface, and how several pairs share a projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from sfkit.config import ComponentSpec
from sfkit.registry.component import AnyOptions, Configurable

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Projector(Configurable, nn.Module, ABC):
    """A trainable map from ``student_dim`` to ``teacher_dim`` channels over grids.

    It is given grids, so that convolutional projectors work view by view. The core builds it under its own random
    generator and keeps its parameters in float32 when the policy is cast.

    Attributes:
        target_transforms: What turns the teacher's features into this projector's target, in order (modules of
            ``sfkit.transforms``); filled by the core. They live here because their state belongs to the pair.
        objective_head: What the objective trains for this pair, see :meth:`sfkit.Objective.head`; set by the core.
        shallow_first: Of the class: whether pairs that share it must come with ascending layers.
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
        """Project for one of ``count`` pairs that share this projector, ``index`` from 0; by default like any other."""
        projected: Tensor = self(tokens, mask)
        return projected


def xavier(layer: Layer) -> Layer:
    """The layer with Xavier-uniform weights and a zero bias, if it has one."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class SharedProjector(Projector):
    """What one of several pairs sees of the projector that they share.

    Target transforms and the objective's head stay the pair's own. The first pair's module holds the shared one and so
    brings its parameters, once, to the optimizer, to DDP and to checkpoints; the others only refer to it.

    Args:
        core: The projector.
        index: Number of the pair, from 0.
        count: How many share it.
    """

    name = "shared"

    def __init__(self, core: Projector, index: int, count: int) -> None:
        super().__init__(core.student_dim, core.teacher_dim)
        self.index, self.count = index, count
        self._elsewhere = () if index == 0 else (core,)
        if index == 0:
            self.core = core

    @property
    def shared(self) -> Projector:
        """The projector that all of them use."""
        return self._elsewhere[0] if self._elsewhere else self.core

    @property
    def spec(self) -> ComponentSpec:
        core: Configurable = self.shared
        return core.spec

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.shared.forward_shared(tokens, mask, self.index, self.count)


class Unprojected(Projector):
    """In the place of a projector where no features are compared; student and teacher may differ in width."""

    name = "none"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens
