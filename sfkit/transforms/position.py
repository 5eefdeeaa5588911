"""A code of each patch's position, added to the target."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.registry.component import AnyOptions
from sfkit.transforms.base import Transform
from sfkit.views.types import FeatureMap


class PositionCodeOptions(Options):
    """Options of :class:`PositionCode`."""

    ratio: float = Field(default=0.1, ge=0, description="Size of the code; see scale.")
    scale: Literal["relative", "absolute"] = Field(
        default="relative",
        description="relative: the code's norm is ratio times the mean norm of the sample's valid features, so it has "
        "the same share whatever the teacher. absolute: its amplitude is ratio (norm: ratio * sqrt(d / 2)), as "
        "released, which fits only teachers whose features have VGGT's norm.",
    )


def position_code(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of a patch's place: ``(rows, columns, dim)`` float32, of norm ``sqrt(dim / 2)`` everywhere.

    With ``a = columns / rows``, x runs from ``-s (columns - 1) / columns`` to its negative, ``s = a / sqrt(a^2 + 1)``,
    and y likewise with ``s = 1 / sqrt(a^2 + 1)``. Half of the channels code x, then half y: each the sines and then the
    cosines of ``coordinate / 100^(k / (dim / 4))``, ``k = 0 ... dim / 4 - 1``.
    """
    aspect = columns / rows
    diagonal = (aspect**2 + 1) ** 0.5
    frequencies = 100.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def axis(count: int, span: float) -> Tensor:
        end = span * (count - 1) / count
        angles = torch.linspace(-end, end, count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    x = axis(columns, aspect / diagonal)[None].expand(rows, -1, -1)
    y = axis(rows, 1 / diagonal)[:, None].expand(-1, columns, -1)
    return torch.cat([x, y], -1).float()


class PositionCode(Transform):
    """``t + ratio * code(row, column)``, the same in every view; ``(b, v, gh, gw, d)`` to the same shape.

    Source: the repository OpenHelix-Team/Spatial-Forcing (there ratio 0.1, ``absolute``, before resampling); the code
    itself is :func:`position_code`.

    Raises:
        ConfigError: The number of channels is no multiple of 4.
    """

    name = "position-code"
    Options: ClassVar[type[Options]] = PositionCodeOptions
    options: PositionCodeOptions

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__(dim, options)
        if dim % 4:
            raise ConfigError(
                f"Transform {self.name!r} needs a multiple of 4 channels, the features have {dim}.",
                'Bring them to such a number first, with "pca" or "random-projection", or leave the code out.',
            )
        self._code = torch.empty(0, 0, 0)

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        clean = features.sanitized()
        values = clean.values.float()
        code = self.options.ratio * self._code_for(clean.grid, values.device)
        if self.options.scale == "relative":
            count = clean.mask.flatten(1).sum(1).clamp(min=1)
            norm = values.norm(dim=-1).flatten(1).sum(1) / count
            code = code * (norm / (self.dim / 2) ** 0.5).reshape(-1, 1, 1, 1, 1)
        return FeatureMap(values + code, clean.mask).sanitized()

    def _code_for(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        if self._code.shape[:2] != grid or self._code.device != device:
            self._code = position_code(*grid, self.dim).to(device)
        return self._code
