"""Cosine objective."""

from __future__ import annotations

from torch import Tensor

from sfkit.objectives.base import Objective, cosine_similarity, masked_mean


class CosineObjective(Objective):
    """``1 - cos`` averaged over the valid tokens of each sample, so in [0, 2].

    Source: Spatial Forcing, arXiv 2510.12276, equation 3 (which drops the constant 1; the gradient is the same).
    """

    name = "cosine"

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return self.from_cosine(cosine_similarity(student, teacher), mask)

    def from_cosine(self, cosine: Tensor, mask: Tensor) -> Tensor:
        """``(b,)`` losses from the cosine ``(b, v, gh, gw)`` of each token, for those who need it anyway."""
        return masked_mean(1.0 - cosine, mask)
