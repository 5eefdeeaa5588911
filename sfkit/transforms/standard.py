"""Target transforms that keep the number of channels: normalizations, position code, resampling."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.transforms.base import Transform
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap


class SpatialNormOptions(Options):
    """Options of :class:`SpatialNorm`."""

    gamma: float = Field(default=0.6, ge=0, le=1, description="The share of the mean that is subtracted.")
    eps: float = Field(default=1e-6, gt=0, description="Added to the deviation.")


class SpatialNorm(Transform):
    """``(t - gamma * mean(t)) / (std(t) + eps)`` for each channel, over the valid patches of each view.

    It removes what all patches share, which a student can match without looking at any. A channel that is constant over
    a view has deviation 0: with ``gamma`` below 1 it becomes very large, as published; with ``gamma=1`` it becomes 0.
    The deviation is the unbiased one.

    Source: iREPA, arXiv 2512.10794 (gamma 0.6 in its latent, 0.8 in its pixel experiments).

    Raises:
        ShapeError: A view has one patch, of which nothing would be left.
    """

    name = "spatial-norm"
    Options: ClassVar[type[Options]] = SpatialNormOptions
    options: SpatialNormOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, gh, gw, d)`` to the same shape."""
        if math.prod(features.grid) < 2:
            raise ShapeError(f"Transform {self.name!r} needs several patches in a view, there is one.", "Leave it out.")
        clean = features.sanitized()
        values, mask = clean.values.float(), clean.mask.unsqueeze(-1)
        count = mask.sum((2, 3), keepdim=True)
        mean = values.sum((2, 3), keepdim=True) / count.clamp(min=1)
        centered = torch.where(mask, values - mean, 0.0)
        # A masked token is 0 after centering, so it adds nothing to the sum.
        deviation = (centered.square().sum((2, 3), keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        normalized = (values - self.options.gamma * mean) / (deviation + self.options.eps)
        return FeatureMap(normalized, clean.mask).sanitized()


class LayerNormOptions(Options):
    """Options of :class:`LayerNormTransform`."""

    eps: float = Field(default=1e-5, gt=0, description="Added to the variance.")


class LayerNormTransform(Transform):
    """Each patch to mean 0 and variance 1 over its channels, without learned parameters.

    Without it, single channels of huge magnitude dominate a cosine. Source: layer normalization, arXiv 1607.06450, as
    on the targets of data2vec, arXiv 2202.03555, section 3.3.
    """

    name = "layer-norm"
    Options: ClassVar[type[Options]] = LayerNormOptions
    options: LayerNormOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, gh, gw, d)`` to the same shape."""
        values = F.layer_norm(features.sanitized().values.float(), (self.dim,), eps=self.options.eps)
        return FeatureMap(values, features.mask).sanitized()


class PositionCodeOptions(Options):
    """Options of :class:`PositionCode`."""

    ratio: float = Field(default=0.1, ge=0, description="Size of the code; see scale.")
    scale: Literal["relative", "absolute"] = Field(
        default="relative",
        description="ratio: of the norms (relative), or the amplitude, as released (absolute).",
    )


def position_code(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of a patch's place: ``(rows, columns, dim)`` float32, of norm ``sqrt(dim / 2)`` everywhere.

    With ``a = columns / rows``, x runs from ``-s (columns - 1) / columns`` to its negative, ``s = a / sqrt(a^2 + 1)``.
    y runs over the rows in the same way, with ``s = 1 / sqrt(a^2 + 1)``. Half of the channels code x, then half y: each
    the sines and then the cosines of ``coordinate / 100^(k / (dim / 4))``, ``k = 0 ... dim / 4 - 1``.
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
    """``t + ratio * code(row, column)``, the same in every view.

    With ``scale="relative"`` the code's norm is ``ratio`` times the mean norm of the sample's valid features, so it has
    the same share for any teacher. With ``"absolute"`` its amplitude is ``ratio`` (its norm ``ratio sqrt(d / 2)``), as
    released, which fits only teachers whose features have VGGT's norm.

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
            raise ConfigError(f"Transform {self.name!r} needs a multiple of 4 channels, not {dim}.", "Put pca first.")
        self._code = torch.empty(0, 0, 0)

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, gh, gw, d)`` to the same shape."""
        clean = features.sanitized()
        values = clean.values.float()
        # The grid is the same in almost every step.
        if self._code.shape[:2] != clean.grid or self._code.device != values.device:
            self._code = position_code(*clean.grid, self.dim).to(values.device)
        code = self.options.ratio * self._code
        if self.options.scale == "relative":
            count = clean.mask.flatten(1).sum(1).clamp(min=1)
            norm = values.norm(dim=-1).flatten(1).sum(1) / count
            code = code * (norm / (self.dim / 2) ** 0.5).reshape(-1, 1, 1, 1, 1)
        return FeatureMap(values + code, clean.mask).sanitized()


class ResampleOptions(Options):
    """Options of :class:`ResampleTransform`."""

    align_corners: Harmless[bool] = Field(
        default=False, description="Align the centers of the corner patches, without antialiasing, as released."
    )
    scale_factor: Harmless[bool] = Field(
        default=False,
        description="Size from one ratio, rounded down, as released; refuses grids that come out small.",
    )


class ResampleTransform(Transform):
    """To the student's grid, bilinear, without masked tokens; see :func:`sfkit.views.resample.resample`.

    With ``align_corners`` the centers of the corner patches coincide, which shifts the borders by up to 0.28 of a
    student patch. A target is valid if valid tokens carry at least half of its weight, as without.

    With ``scale_factor`` the size is ``int(side * r)``, ``r = 1 / sqrt(teacher tokens / student tokens)``: 37 patches
    cannot be brought to 6, 12, 13, 15, 24, 26, 30 or 33 in this way, nor a grid to one of another aspect.

    Source of both: the repository OpenHelix-Team/Spatial-Forcing (37 to 16 patches).

    Raises:
        ShapeError: With ``scale_factor``, the size is not the student's.
    """

    name = "resample"
    resamples: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = ResampleOptions
    options: ResampleOptions

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, *, *, d)`` to ``(b, v, gh, gw, d)``, the grid of ``wanted``."""
        own, grid = features.grid, (wanted.shape[2], wanted.shape[3])
        if self.options.scale_factor:
            # Square root and int as released: this is the quirk that the option reproduces.
            ratio = 1 / math.sqrt((own[0] * own[1]) / (grid[0] * grid[1]))
            reached = (int(own[0] * ratio), int(own[1] * ratio))
            if reached != grid:
                raise ShapeError(
                    f"With scale_factor the teacher's grid {own} becomes {reached}, and the student has {grid}.",
                    "The released code stops here too. Leave scale_factor out: the target then has the student's grid.",
                )
        resampled = _corners_aligned(features, grid) if self.options.align_corners else resample(features, grid)
        return FeatureMap(resampled.values, resampled.mask & wanted).sanitized()


def _corners_aligned(features: FeatureMap, grid: tuple[int, int]) -> FeatureMap:
    clean = features.sanitized()
    b, v, gh, gw, d = clean.values.shape
    # The mask is resampled as one more channel, with the weights of the features.
    weight = clean.mask.unsqueeze(-1).float()
    stacked = torch.cat([clean.values.float(), weight], -1).permute(0, 1, 4, 2, 3).reshape(b * v, d + 1, gh, gw)
    stacked = F.interpolate(stacked, size=grid, mode="bilinear", align_corners=True)
    stacked = stacked.reshape(b, v, d + 1, *grid).permute(0, 1, 3, 4, 2)
    coverage = stacked[..., d]
    return FeatureMap(stacked[..., :d] / coverage.clamp(min=1e-6).unsqueeze(-1), coverage >= 0.5)
