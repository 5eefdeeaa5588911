"""A fixed random projection to fewer channels."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.registry.component import AnyOptions
from sfkit.transforms.base import Transform
from sfkit.views.types import FeatureMap


class RandomProjectionOptions(Options):
    """Options of :class:`RandomProjection`."""

    dim: int = Field(ge=1, description="Channels of the target.")
    seed: int = Field(default=0, ge=0, description="Of the matrix, which is also saved with the projector.")


def check_fewer(name: str, dim: int, wanted: int) -> None:
    """Check that a reduction reduces.

    Raises:
        ConfigError: ``wanted`` is more than ``dim``.
    """
    if wanted > dim:
        raise ConfigError(
            f"Transform {name!r} was asked for {wanted} channels, the features have {dim}.", f"Give 1 to {dim}."
        )


class RandomProjection(Transform):
    """``R t`` with ``R_ij ~ N(0, 1 / k)``, fixed: lengths and angles are kept up to about ``1 / sqrt(k)``.

    ``(b, v, gh, gw, d)`` to ``(b, v, gh, gw, k)``. Source: the lemma of Johnson and Lindenstrauss (Contemporary
    Mathematics 26, 1984); Dasgupta and Gupta (Random Structures and Algorithms 22, 2003) for this matrix.

    Raises:
        ConfigError: More channels are asked for than there are.
    """

    name = "random-projection"
    Options: ClassVar[type[Options]] = RandomProjectionOptions
    options: RandomProjectionOptions
    matrix: Tensor

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__(dim, options)
        check_fewer(self.name, dim, self.options.dim)
        generator = torch.Generator().manual_seed(self.options.seed)
        matrix = torch.randn(self.options.dim, dim, generator=generator) / self.options.dim**0.5
        self.register_buffer("matrix", matrix)

    @property
    def out_dim(self) -> int:
        return self.options.dim

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        return FeatureMap(features.sanitized().values.float() @ self.matrix.t(), features.mask)
