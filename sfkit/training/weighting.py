"""Balance: the weight that keeps the alignment gradient at a given ratio to the action gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sfkit.training.gradients import GradientSums

#: Share of the running mean that one step keeps: it looks back over about fifty steps.
_KEEP = 0.98
#: The weight stays within the ratio times or over this, whatever was measured.
_WIDEST = 1e4


class Balance:
    """``w = ratio * |g_action| / |g_alignment|``, both at the tapped tokens, for an alignment loss of weight 1.

    The logarithm of that quotient is averaged over steps (exponentially, 0.98), so that ratio and weight are treated
    alike in both directions and a single step weighs little. The sums are those of all ranks, so the weight is the
    same on all. Before the first measurement, in the very first step, ``w`` is the ratio itself.

    Everything stays on the device: using and updating the weight waits for nothing.

    Source: the ratio of gradient norms at a shared tensor is that of GradNorm (arXiv 1711.02257, section 3) and of the
    adaptive weight of VQGAN (arXiv 2012.09841, equation 7), which take it at parameters and by further backward passes.

    Args:
        ratio: Above 0.

    Attributes:
        log: ``()`` the running mean; NaN before the first measurement.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.log = torch.tensor(torch.nan)

    def weight(self, device: torch.device) -> Tensor:
        """``()`` float32: the weight of the coming step."""
        gain = self.log.to(device).nan_to_num(0.0).exp().clamp(1 / _WIDEST, _WIDEST)
        return self.ratio * gain

    def update(self, sums: GradientSums) -> None:
        """Take in what the last backward has measured; nothing happens where it has measured nothing."""
        fresh = 0.5 * (sums.action.sum().log() - sums.unweighted.sum().log())
        before = self.log.to(fresh.device)
        mean = torch.where(before.isnan(), fresh, _KEEP * before + (1 - _KEEP) * fresh)
        self.log = torch.where(sums.known, mean, before)

    @property
    def measured(self) -> bool:
        """Whether anything was measured so far. Asking waits for the device."""
        return not bool(self.log.isnan())


def beside(scalar: Tensor, other: Tensor) -> Tensor:
    """A 0-d tensor where it may be multiplied with another; one on the host may be anyway, without a copy."""
    return scalar if scalar.device.type == "cpu" else scalar.to(other.device)
