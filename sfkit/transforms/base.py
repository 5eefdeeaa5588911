"""The interface of target transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sfkit.registry.component import AnyOptions, Configurable
from sfkit.views.types import FeatureMap


class Transform(Configurable, nn.Module, ABC):
    """One step from the teacher's features to the target, without gradient and without trainable parameters.

    Transforms are applied in order. ``resample`` stands first if the sequence does not hold it, so that the others see
    the student's grid and only those tokens that take part in the loss; what is listed before an explicit ``resample``
    sees the teacher's own grid. The core keeps the parameters' device and float32; what is kept as a buffer is saved.

    Attributes:
        dim: Channels that come in.
        resamples: True for the transform that brings the map to the student's grid.
    """

    resamples: ClassVar[bool] = False

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__()
        self.dim = dim
        self.configure(options)

    @property
    def out_dim(self) -> int:
        """Channels that come out."""
        return self.dim

    @abstractmethod
    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """Transform.

        Args:
            features: ``(b, v, *, *, dim)`` floating point; masked values may be NaN.
            wanted: ``(b, v, gh, gw)`` bool on the student's grid: its tokens that may be aligned.

        Returns:
            ``(b, v, *, *, out_dim)`` float32, 0 where masked; on the grid that came in, or for a transform that
            resamples, on the student's, with the mask of tokens that are valid on both sides.
        """
