"""Cosine objective."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.objectives.base import Objective, masked_mean, precise


class CosineObjective(Objective):
    """``1 - cos`` averaged over the valid tokens of each sample, so in [0, 2].

    Source: Spatial Forcing, arXiv 2510.12276, equation 3 (which drops the constant 1; the gradient is the same).
    """

    name = "cosine"

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        similarity = F.cosine_similarity(precise(student), precise(teacher), dim=-1, eps=1e-6)
        return masked_mean(1.0 - similarity, mask)
