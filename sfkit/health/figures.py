"""Figures of token maps: spread and rank of directions, norms, and drift since the run began."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sfkit.objectives.base import masked_mean, unit
from sfkit.training.pair import Compared

#: Tokens that are looked at, evenly spaced over the valid ones.
_MOST = 512
#: Values of each parameter that are watched.
_SAMPLE = 1024


def pair_figures(tokens: Tensor, maps: Compared) -> dict[str, Tensor]:
    """Figures ``()`` of a pair, and its cosine ``(v,)``, from the tokens ``(b, v, gh, gw, d)`` and the maps."""
    mask = maps.mask
    agreement = (unit(maps.projected) * unit(maps.target)).sum(-1)
    by_view = masked_mean(agreement.transpose(0, 1), mask.transpose(0, 1))
    spread, rank = spread_and_rank(maps.projected, mask)
    target_spread, target_rank = spread_and_rank(maps.target, mask)
    return {
        "views": torch.where(mask.transpose(0, 1).flatten(1).any(1), by_view, torch.nan),
        "valid": mask.float().mean(),
        "token_norm": mean_norm(tokens, mask),
        "projected_norm": mean_norm(maps.projected, mask),
        "target_norm": mean_norm(maps.target, mask),
        "rank": rank,
        "target_rank": target_rank,
        "spread": spread,
        "target_spread": target_spread,
        "target_variation": variation_over_samples(maps.target, mask),
    }


def spread_and_rank(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Spread and effective rank of the valid tokens' directions.

    With unit vectors ``u_i`` and their mean ``m``, the spread is ``mean |u_i - m|^2 = 1 - |m|^2``: 0 where all point
    the same way, 1 where they cancel out. The effective rank is the participation ratio ``(sum l)^2 / sum l^2`` of the
    eigenvalues ``l`` of their covariance: 1 on a line, ``k`` where ``k`` directions carry the same variance.

    Args:
        tokens: ``(..., d)``.
        mask: ``(*)`` bool.

    Returns:
        Two ``()`` float32; NaN for fewer than two valid tokens.
    """
    rows = tokens[mask]
    rows = unit(rows[:: max(1, -(-len(rows) // _MOST))])
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

    0 where the tokens are the same for every image; NaN where no place is valid in two samples.

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
    """``()``: mean Euclidean norm of the valid ones of ``(b, v, gh, gw, d)`` tokens; NaN where there are none."""
    norms = torch.where(mask, tokens.float().norm(dim=-1), 0.0)
    return norms.sum() / mask.sum()


def moments(tokens: Tensor, mask: Tensor) -> Tensor:
    """``(2, d)``: mean and standard deviation of each channel over the valid tokens of ``(b, v, gh, gw, d)``."""
    rows = tokens[mask].float()
    if not len(rows):
        return torch.full((2, tokens.shape[-1]), torch.nan, device=tokens.device)
    return torch.stack([rows.mean(0), rows.std(0, correction=0)])


def drift(now: Tensor, reference: Tensor) -> Tensor:
    """``()``: distance between two distributions of tokens, ``(2, d)`` each, in standard deviations of the reference.

    ``sqrt(|m - m0|^2 + |s - s0|^2) / |s0|``, the Fréchet distance of two Gaussians with diagonal covariances
    (Dowson and Landau, Journal of Multivariate Analysis 12, 1982) over the spread of the reference.
    """
    distance: Tensor = (now - reference).norm() / reference[1].norm().clamp(min=1e-12)
    return distance


def drift_noise(tokens: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """``()``: the drift between two batches although nothing has changed, from the halves of ``(b, v, gh, gw, d)``.

    The halves differ by sqrt(2) more than two whole batches do. NaN for a batch of one.
    """
    half = len(tokens) // 2
    first, second = moments(tokens[:half], mask[:half]), moments(tokens[half:], mask[half:])
    distance: Tensor = (first - second).norm() / 2**0.5 / reference[1].norm().clamp(min=1e-12)
    return distance


@torch.no_grad()
def sample_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """``(n,)`` float32: evenly spaced values of each parameter that is trained; the same ones every time."""
    parts = []
    for parameter in parameters:
        if parameter.requires_grad and parameter.numel():
            # Of a sharded parameter: this rank's part.
            local = getattr(parameter, "to_local", lambda p=parameter: p)().detach().flatten()
            parts.append(local[:: max(1, -(-local.numel() // _SAMPLE))].float())
    return torch.cat(parts) if parts else torch.empty(0)
