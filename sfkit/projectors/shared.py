"""One projector for several pairs."""

from __future__ import annotations

from torch import Tensor

from sfkit.config import ComponentSpec
from sfkit.projectors.base import Projector
from sfkit.registry.component import Configurable


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
