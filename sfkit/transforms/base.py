"""The interface of target transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sfkit.registry.component import AnyOptions, Configurable
from sfkit.views.types import FeatureMap


class Transform(Configurable, nn.Module, ABC):
    """One step from the teacher's features to the target, without gradient and without trained parameters.

    Transforms apply in order. If the sequence holds no ``resample``, the core puts it first, so that the others see the
    student's grid and only the tokens that take part in the loss. A transform in front of an explicit ``resample`` sees
    the teacher's own grid. The core keeps buffers on the policy's device and in float32, and saves them.

    Attributes:
        dim: Channels of the input.
        resamples: True for the transform that brings the map to the student's grid.
    """

    resamples: ClassVar[bool] = False

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__()
        self.dim = dim
        self.configure(options)

    @property
    def out_dim(self) -> int:
        """Channels of the output."""
        return self.dim

    @abstractmethod
    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """Transform.

        Args:
            features: ``(b, v, *, *, dim)`` floating point; masked values may be NaN.
            wanted: ``(b, v, gh, gw)`` bool on the student's grid: its tokens that may be aligned.

        Returns:
            ``(b, v, *, *, out_dim)`` float32, 0 where masked. The grid is that of the input. A transform that resamples
            returns the student's grid, with the mask of tokens that are valid on both sides.
        """
