"""InfoNCE over patches."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ShapeError
from sfkit.objectives.base import Objective, masked_mean, unit
from sfkit.objectives.gathering import tokens_of_other_ranks
from sfkit.utils.runtime import is_distributed


class InfoNCEOptions(Options):
    """Options of :class:`InfoNCEObjective`."""

    temperature: float = Field(default=0.07, gt=0, description="Divides the cosine similarities.")
    negatives: Literal["view", "sample", "batch", "devices"] = Field(
        default="sample",
        description="Where the teacher's other patches come from: the same view, all views of the sample, the whole "
        "batch, or the batches of all ranks.",
    )


class InfoNCEObjective(Objective):
    """``-log( exp(cos(p_i, t_i) / tau) / sum_j exp(cos(p_i, t_j) / tau) )``, averaged over the valid tokens ``i``.

    ``j`` runs over the valid teacher patches of ``negatives``, ``i`` among them; a token without a negative contributes
    0. Each patch must be told from all others: the teacher's near-identical neighbors (table, wall) count as negatives
    too, so prefer few and distinct patches. With ``batch`` and ``devices`` a sample's loss depends on the others.
    Memory goes with the square of the tokens among which negatives are sought. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    With ``devices``, ranks exchange the teacher's tokens, which carry no gradient; a rank that does not align in a
    training step takes part with none.

    Source: CPC, arXiv 1807.03748, equation 4; temperature 0.07 as in MoCo, arXiv 1911.05722, section 3.3.

    Raises:
        ShapeError: There is one token only, hence no negative.
    """

    name = "info-nce"
    Options: ClassVar[type[Options]] = InfoNCEOptions
    options: InfoNCEOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        b, v, gh, gw, _ = student.shape
        negatives = self.options.negatives
        groups = {"view": b * v, "sample": b}.get(negatives, 1)
        count = mask.numel() // groups if groups else 0
        # Other ranks may have some.
        if count < 2 and not (negatives == "devices" and is_distributed()):
            raise ShapeError(
                f"Objective {self.name!r} finds no negative: {count} token of {b} samples, {v} views and a grid of "
                f"{gh} x {gw}, with negatives of the {negatives}.",
                'Choose negatives="batch" with several samples, or another objective.',
            )
        p, t = (unit(x).reshape(groups, count, -1) for x in (student, teacher))
        others = ~mask.reshape(groups, 1, count)
        # The lowest finite number, not -inf: the gradient of a sample without a valid token would pass through NaN.
        similarity = (p @ t.transpose(1, 2) / self.options.temperature).masked_fill(others, torch.finfo(p.dtype).min)
        own = (p * t).sum(-1) / self.options.temperature
        if negatives == "devices":
            far = tokens_of_other_ranks(t[~others.squeeze(1)])
            similarity = torch.cat([similarity, p @ far.t() / self.options.temperature], -1)
        return masked_mean((similarity.logsumexp(-1) - own).reshape(mask.shape), mask)

    @property
    def has_collectives(self) -> bool:
        return self.options.negatives == "devices"

    def participate_without_data(self) -> None:
        if self.has_collectives:
            tokens_of_other_ranks(None)
