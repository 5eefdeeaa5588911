"""Direction and magnitude of the teacher's features: the two terms of Geometry Forcing."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.objectives.base import Objective, masked_mean, precise, unit
from sfkit.registry.component import Harmless


class AngularScaleOptions(Options):
    """Options of :class:`AngularScaleObjective`."""

    scale_weight: float = Field(default=0.1, ge=0, description="Weight of the scale term beside the angular one.")
    relative: Harmless[bool] = Field(
        default=True,
        description="Divide the scale term by the mean square of the sample's valid features, so that it does not "
        "depend on the teacher's units.",
    )


class AngularScaleObjective(Objective):
    """``mean_i [1 - cos(p_i, t_i)] + w mean_i |g(p_i / |p_i|) - t_i|^2 / mean_i |t_i|^2`` over the valid tokens.

    The cosine fixes the direction alone; ``g``, a trainable linear map kept with the projector, must in addition
    recover the un-normalized feature from the normalized projection. So the magnitude of the teacher's features, which
    in a geometric teacher means something, has to be read from the direction of the student's. With ``relative=False``
    the second term is the plain mean squared error over tokens and channels. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    Source: Geometry Forcing, arXiv 2507.07982 (angular alignment and scale alignment). The linear head, and the
    division by the features' mean square, are choices of this library.

    Raises:
        ConfigError: Called without its head; :func:`sfkit.training.step.align` passes it.
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
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        if head is None:
            raise ConfigError(
                f"Objective {self.name!r} was called without the head that it trains.",
                "Let SpatialForcing.wrap build it, or call with_head(student, teacher, mask, objective.head(dim)).",
            )
        direction, target = unit(student), precise(teacher)
        angular = masked_mean(1.0 - (direction * unit(target)).sum(-1), mask)
        scale = masked_mean((head(direction) - target).square().mean(-1), mask)
        if self.options.relative:
            scale = scale / masked_mean(target.square().mean(-1), mask).clamp(min=1e-6)
        return angular + self.options.scale_weight * scale
