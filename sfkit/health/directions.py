"""Of a set of tokens: how many directions they spread over, and whether they differ at all."""

from __future__ import annotations

import torch
from torch import Tensor

from sfkit.objectives.base import unit

#: Tokens looked at, spread evenly over those that are valid.
_MOST = 512


def spread_and_rank(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Spread and effective rank of the valid tokens' directions.

    With unit vectors ``u_i`` and their mean ``m``, the spread is ``mean |u_i - m|^2 = 1 - |m|^2``: 0 where all point
    the same way, 1 where they cancel out. The effective rank is the participation ratio ``(sum l)^2 / sum l^2`` of the
    eigenvalues ``l`` of their covariance: 1 on a line, ``k`` where ``k`` directions carry the same variance.

    Args:
        tokens: ``(..., d)``.
        mask: ``(...)`` bool.

    Returns:
        Two ``()`` float32; NaN for fewer than two valid tokens.
    """
    rows = unit(_some(tokens[mask]))
    if len(rows) < 2:
        missing = rows.new_full((), torch.nan)
        return missing, missing
    centered = rows - rows.mean(0)
    spread = centered.square().sum(-1).mean()
    # The trace and the norm of the Gram matrix give the ratio without an eigendecomposition.
    gram = centered @ centered.t()
    return spread, gram.trace().square() / gram.square().sum().clamp(min=1e-30)


def variation_over_samples(tokens: Tensor, mask: Tensor) -> Tensor:
    """``()``: variance of the directions between samples, at one place of one view, averaged over places.

    0 where the tokens are the same for every picture; NaN where no place is valid in two samples.

    Args:
        tokens: ``(b, v, gh, gw, d)``.
        mask: ``(b, v, gh, gw)`` bool.
    """
    weight = mask.unsqueeze(-1).float()
    count = weight.sum(0)
    directions = unit(tokens) * weight
    mean = directions.sum(0) / count.clamp(min=1)
    variance = ((directions - mean) * weight).square().sum((0, -1)) / count.squeeze(-1).clamp(min=1)
    several = count.squeeze(-1) >= 2
    return torch.where(several.any(), variance[several].sum() / several.sum().clamp(min=1), torch.nan)


def mean_norm(tokens: Tensor, mask: Tensor) -> Tensor:
    """``()``: mean Euclidean norm of the valid tokens; NaN where there are none."""
    norms = torch.where(mask, tokens.float().norm(dim=-1), 0.0)
    return norms.sum() / mask.sum()


def _some(rows: Tensor) -> Tensor:
    step = max(1, -(-len(rows) // _MOST))
    return rows[::step]
