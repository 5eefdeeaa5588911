"""Smooth L1 distance between normalized features."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.objectives.base import Objective, masked_mean
from sfkit.objectives.normalizing import NormalisedOptions, normalized


class SmoothL1Options(NormalisedOptions):
    """Options of :class:`SmoothL1Objective`."""

    beta: float = Field(default=1.0, gt=0, description="Below this difference the loss is quadratic, above it linear.")


class SmoothL1Objective(Objective):
    """``mean_c h(p_c - t_c)``, averaged over the valid tokens of each sample.

    ``h(x) = x^2 / (2 beta)`` where ``|x| < beta``, else ``|x| - beta / 2``: as ``mse``, with less weight on channels
    that are far off. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    Source: Fast R-CNN, arXiv 1504.08083, equation 3; on layer-normalized features as in data2vec, arXiv 2202.03555,
    section 3.3.
    """

    name = "smooth-l1"
    Options: ClassVar[type[Options]] = SmoothL1Options
    options: SmoothL1Options

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        how = self.options.normalize
        distance = F.smooth_l1_loss(
            normalized(student, how), normalized(teacher, how), reduction="none", beta=self.options.beta
        )
        return masked_mean(distance.mean(-1), mask)
