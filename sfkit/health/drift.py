"""How far tokens and projector have moved from where they were when the run began."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Values of each parameter that are watched.
_SAMPLE = 1024


def moments(tokens: Tensor, mask: Tensor) -> Tensor:
    """``(2, d)``: mean and standard deviation of each channel over the valid tokens of ``(b, v, gh, gw, d)``."""
    rows = tokens[mask].float()
    if not len(rows):
        return torch.full((2, tokens.shape[-1]), torch.nan, device=tokens.device)
    return torch.stack([rows.mean(0), rows.std(0, correction=0)])


def drift(now: Tensor, reference: Tensor) -> Tensor:
    """``()``: distance between two distributions of tokens, in standard deviations of the reference.

    ``sqrt(|m - m0|^2 + |s - s0|^2) / |s0|``, the Fréchet distance of two Gaussians with diagonal covariances
    (Dowson and Landau, Journal of Multivariate Analysis 12, 1982) over the spread of the reference.
    """
    distance: Tensor = (now - reference).norm() / reference[1].norm().clamp(min=1e-12)
    return distance


def drift_noise(tokens: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """``()``: the drift that two batches show although nothing has changed, from the halves of this batch.

    The halves differ by sqrt(2) more than two whole batches do. NaN for a batch of one.
    """
    half = len(tokens) // 2
    first, second = moments(tokens[:half], mask[:half]), moments(tokens[half:], mask[half:])
    distance: Tensor = (first - second).norm() / 2**0.5 / reference[1].norm().clamp(min=1e-12)
    return distance


@torch.no_grad()
def sample_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """``(n,)`` float32: evenly spaced values of each parameter that is trained; always the same ones."""
    parts = []
    for parameter in parameters:
        if parameter.requires_grad and parameter.numel():
            # Of a sharded parameter: this rank's part.
            local = getattr(parameter, "to_local", lambda p=parameter: p)().detach().flatten()
            parts.append(local[:: max(1, -(-local.numel() // _SAMPLE))].float())
    return torch.cat(parts) if parts else torch.empty(0)
