"""Figures of token maps: directions, norms, drift since the run began, and spatial correspondence."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.objectives.base import masked_mean, unit
from sfkit.training.pair import Compared

#: Where the token is taken from, in (rows, columns), seen from the patch of the target. The first is no shift.
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))

_TOKENS, _CHANNELS, _RIDGE = 768, 32, 0.3

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


def shift_errors(tokens: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """How well a linear map predicts the target of a patch, from the token there and from each of its eight neighbors.

    A ridge regression for each shift, fitted on every other sample and judged on the rest, then the other way round.
    It is fitted anew and for all shifts alike, so it does not favor the pairing that the projector has been trained
    on: tokens that are off by one show it from the first step. All shifts predict the same patches, those inside the
    border of the grid whose nine tokens are all valid.

    Args:
        tokens: ``(b, v, gh, gw, d)``, the student's; any value where masked.
        target: ``(b, v, gh, gw, e)``.
        mask: ``(b, v, gh, gw)`` bool.

    Returns:
        ``(9,)`` float32 in the order of :data:`SHIFTS`: squared error over that of the mean, so 1 where nothing is
        predicted; NaN where there are fewer than two samples, rows or columns inside the border, or valid patches.
    """
    nothing = torch.full((len(SHIFTS),), torch.nan, device=tokens.device)
    rows, columns = mask.shape[2:]
    samples = min(len(mask), _TOKENS // (rows * columns))
    if samples < 2 or min(rows, columns) < 3:
        return nothing
    view = int(mask[:samples].flatten(2).sum((0, 2)).argmax())
    mask = mask[:samples, view]
    inside = -F.max_pool2d(-mask.float()[:, None], 3, 1)[:, 0] > 0.5
    if not bool(inside.flatten(1).any(1)[:2].all()):
        return nothing
    clean = torch.where(mask.unsqueeze(-1), tokens[:samples, view].float(), 0.0)
    goal = _fewer_channels(torch.where(mask.unsqueeze(-1), target[:samples, view].float(), 0.0))
    wanted = goal[:, 1:-1, 1:-1][inside]
    place = torch.arange(mask.numel(), device=mask.device).view_as(mask)
    found = [_window(place, shift)[inside] for shift in SHIFTS]
    odd = (torch.arange(samples, device=mask.device) % 2).view(-1, 1, 1).expand_as(inside)[inside].bool()
    valid = clean[mask]
    centered = (clean - valid.mean(0)).flatten(0, 2)
    gram = centered @ centered.t() / valid.var(0).sum().clamp(min=1e-12)
    return torch.stack([_held_out_error(gram[index][:, index], wanted, odd) for index in found])


def _held_out_error(gram: Tensor, wanted: Tensor, odd: Tensor) -> Tensor:
    """``()``: error of kernel ridge regression from ``(n, n)`` products to ``(n, e)`` targets, between two halves."""
    error, scale = gram.new_zeros(()), gram.new_zeros(())
    for held in (odd, ~odd):
        mean = wanted[~held].mean(0)
        kernel = gram[~held][:, ~held]
        kernel = kernel + _RIDGE * torch.eye(len(kernel), device=kernel.device)
        weights = torch.linalg.solve(kernel, wanted[~held] - mean)
        off = wanted[held] - mean
        error = error + (off - gram[held][:, ~held] @ weights).square().sum()
        scale = scale + off.square().sum()
    return torch.where(scale > 0, error / scale.clamp(min=1e-30), torch.nan)


def _window(grid: Tensor, shift: tuple[int, int]) -> Tensor:
    """``(s, rows, columns)`` to ``(s, rows - 2, columns - 2)``: the cells at a shift from those inside the border."""
    (down, right), (_, rows, columns) = shift, grid.shape
    return grid[:, 1 + down : rows - 1 + down, 1 + right : columns - 1 + right]


def _fewer_channels(target: Tensor) -> Tensor:
    """A fixed random projection of targets ``(..., e)``; lengths are kept well enough to compare errors."""
    width = target.shape[-1]
    if width <= _CHANNELS:
        return target
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(width, _CHANNELS, generator=generator).to(target.device)
    fewer: Tensor = target @ (matrix / _CHANNELS**0.5)
    return fewer
