"""Objectives that compare each patch with its own target: by direction, by magnitude, or channel by channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.objectives.base import Objective, cosine_similarity, masked_mean, precise, unit
from sfkit.registry.component import Harmless


class CosineObjective(Objective):
    """``1 - cos`` averaged over the valid tokens of each sample, so in [0, 2].

    Source: Spatial Forcing, arXiv 2510.12276, equation 3 (which drops the constant 1; the gradient is the same).
    """

    name = "cosine"

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
        return self.from_cosine(cosine_similarity(student, teacher), mask)

    def from_cosine(self, cosine: Tensor, mask: Tensor) -> Tensor:
        """``(b,)`` losses from the cosine ``(b, v, gh, gw)`` of each token, for a caller that logs it too."""
        return masked_mean(1.0 - cosine, mask)


class NormalizedOptions(Options):
    """Options of objectives that subtract features."""

    normalize: Literal["layer", "length", "none"] = Field(
        default="layer", description="Each token: mean 0, variance 1 (layer); root mean square 1 (length); or as it is."
    )

    def apply(self, x: Tensor) -> Tensor:
        """``(..., d)`` with each token normalized, in float32 or better."""
        x = precise(x)
        if self.normalize == "layer":
            return F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return unit(x) * x.shape[-1] ** 0.5 if self.normalize == "length" else x


class MSEObjective(Objective):
    """``mean_c (p_c - t_c)^2`` of the normalized features, averaged over the valid tokens of each sample.

    With ``normalize="length"`` it is ``2 (1 - cos)``; with ``"layer"`` it is twice one minus the correlation of the
    channels. Both are in [0, 4].

    Source: FitNets, arXiv 1412.6550, section 2.1 (hint loss); on layer-normalized features as in data2vec,
    arXiv 2202.03555, section 3.3.
    """

    name = "mse"
    Options: ClassVar[type[Options]] = NormalizedOptions
    options: NormalizedOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
        difference = self.options.apply(student) - self.options.apply(teacher)
        return masked_mean(difference.square().mean(-1), mask)


class SmoothL1Options(NormalizedOptions):
    """Options of :class:`SmoothL1Objective`."""

    beta: float = Field(default=1.0, gt=0, description="Below this difference the loss is quadratic, above it linear.")


class SmoothL1Objective(Objective):
    """``mean_c h(p_c - t_c)``, averaged over the valid tokens of each sample.

    ``h(x) = x^2 / (2 beta)`` where ``|x| < beta``, else ``|x| - beta / 2``: like ``mse``, with less weight on channels
    that are far off.

    Source: Fast R-CNN, arXiv 1504.08083, equation 3; on layer-normalized features as in data2vec, arXiv 2202.03555,
    section 3.3.
    """

    name = "smooth-l1"
    Options: ClassVar[type[Options]] = SmoothL1Options
    options: SmoothL1Options

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
        both = self.options.apply(student), self.options.apply(teacher)
        return masked_mean(F.smooth_l1_loss(*both, reduction="none", beta=self.options.beta).mean(-1), mask)


class AngularScaleOptions(Options):
    """Options of :class:`AngularScaleObjective`."""

    scale_weight: float = Field(default=0.1, ge=0, description="Weight of the scale term beside the angular one.")
    relative: Harmless[bool] = Field(default=True, description="Divide the scale term by the target's mean square.")


class AngularScaleObjective(Objective):
    """``mean_i [1 - cos(p_i, t_i)] + w mean_i |g(p_i / |p_i|) - t_i|^2 / mean_i |t_i|^2`` over the valid tokens.

    The cosine determines the direction alone. ``g``, a trained linear map beside the projector, must recover the
    un-normalized feature from the normalized projection. So the direction of the student's token must encode the
    magnitude of the teacher's feature, which carries meaning in a geometric teacher. With ``relative=False`` the second
    term is the plain mean squared error over tokens and channels.

    Source: Geometry Forcing, arXiv 2507.07982 (angular alignment and scale alignment). The linear head, and the
    division by the features' mean square, are choices of this library.

    Raises:
        ConfigError: It is called without its head, which the core passes to ``with_head``.
    """

    name = "angular-scale"
    Options: ClassVar[type[Options]] = AngularScaleOptions
    options: AngularScaleOptions

    def head(self, dim: int) -> nn.Module:
        head = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``; raises, because the head is missing."""
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
        if head is None:
            raise ConfigError(f"Objective {self.name!r} needs its head.", "Pass objective.head(dim) to with_head.")
        direction, target = unit(student), precise(teacher)
        angular = masked_mean(1.0 - (direction * unit(target)).sum(-1), mask)
        scale = masked_mean((head(direction) - target).square().mean(-1), mask)
        if self.options.relative:
            # The clamp serves a target of zeros.
            scale = scale / masked_mean(target.square().mean(-1), mask).clamp(min=1e-6)
        return angular + self.options.scale_weight * scale
