"""The projector interface."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sfkit.component import AnyOptions, Configured


class Projector(Configured, nn.Module, ABC):
    """A trainable map from ``student_dim`` to ``teacher_dim`` channels over grids.

    It is given grids, so that convolutional projectors work view by view. The core builds it under its own random
    generator and keeps its parameters in float32 when the policy is cast.
    """

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__()
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        self.configure(options)

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Project.

        Args:
            tokens: ``(b, v, gh, gw, student_dim)`` float32, zero where masked.
            mask: ``(b, v, gh, gw)`` bool.

        Returns:
            ``(b, v, gh, gw, teacher_dim)`` float32.
        """
