"""Mean squared error between normalized features."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sfkit.config import Options
from sfkit.objectives.base import Objective, masked_mean
from sfkit.objectives.normalizing import NormalisedOptions, normalized


class MSEObjective(Objective):
    """``mean_c (p_c - t_c)^2`` of the normalized features, averaged over the valid tokens of each sample.

    With ``normalize="length"`` it is ``2 (1 - cos)``; with ``"layer"`` twice one minus the correlation of the channels;
    both are in [0, 4]. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    Source: FitNets, arXiv 1412.6550, section 2.1 (hint loss); on layer-normalized features as in data2vec,
    arXiv 2202.03555, section 3.3.
    """

    name = "mse"
    Options: ClassVar[type[Options]] = NormalisedOptions
    options: NormalisedOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        how = self.options.normalize
        return masked_mean((normalized(student, how) - normalized(teacher, how)).square().mean(-1), mask)
