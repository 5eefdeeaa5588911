"""Spatial correspondence: is each token compared with the target of its own patch, or would a neighbor's fit better?"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

#: Where the token is taken from, in (rows, columns), seen from the patch of the target. The first is no shift.
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))

_TOKENS, _CHANNELS, _RIDGE = 768, 32, 0.3


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
