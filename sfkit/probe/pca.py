"""Feature maps as pictures: the three main directions of the tokens as red, green and blue."""

from __future__ import annotations

import torch
from torch import Tensor

from sfkit.probe.ridge import ProbeError
from sfkit.types import FeatureMap

_COMPONENTS = 3
_MIN_TOKENS = 2


@torch.no_grad()
def pca_colors(features: FeatureMap, *, center_positions: bool = False, clip: float = 0.02) -> Tensor:
    """Project tokens on their three main components and scale those to [0, 1].

    Components come from the valid tokens of the whole batch, so that colors may be compared between its pictures (not
    between two calls). Each component's sign is fixed by its largest loading, so that equal input gives equal colors.

    Args:
        features: ``(b, v, gh, gw, d)`` with mask.
        center_positions: Take the batch's mean of each position off first, which shows what changes between frames.
        clip: Share of values at each end that is cut off, so that a single outlier does not fade all others.

    Returns:
        ``(b, v, gh, gw, 3)`` float32 in [0, 1]; masked tokens are NaN.

    Raises:
        ProbeError: Fewer than two valid tokens, or valid ones that are not finite.
    """
    values, mask = features.values.double(), features.mask
    if int(mask.sum()) < _MIN_TOKENS:
        raise ProbeError("PCA colors need at least two valid tokens.")
    if not bool(values[mask].isfinite().all()):
        raise ProbeError("Valid tokens contain NaN or infinity.")
    if center_positions:
        kept = torch.where(mask.unsqueeze(-1), values, 0.0)
        values = values - kept.sum(0) / mask.sum(0).clamp(min=1).unsqueeze(-1)
    tokens = values[mask]
    tokens = tokens - tokens.mean(0)
    projected = tokens @ _main_directions(tokens)
    low, high = projected.quantile(clip, dim=0), projected.quantile(1 - clip, dim=0)
    span = high - low
    scaled = torch.where(span > 0, (projected - low) / span.clamp(min=1e-300), 0.5).clamp(0, 1)
    colors = torch.full((*mask.shape, _COMPONENTS), torch.nan)
    colors[mask.cpu()] = scaled.float().cpu()
    return colors


def _main_directions(tokens: Tensor) -> Tensor:
    """``(d, 3)`` unit directions, by falling variance; zero where the tokens span fewer."""
    d = tokens.shape[1]
    values, vectors = torch.linalg.eigh(tokens.T @ tokens / len(tokens))
    count = min(_COMPONENTS, d)
    main = vectors[:, -count:].flip(1)
    strength = values[-count:].flip(0)
    main = torch.where(strength > 1e-12 * values[-1].clamp(min=1e-300), main, torch.zeros_like(main))
    loading = main.gather(0, main.abs().argmax(0, keepdim=True))
    main = main * torch.where(loading < 0, -1.0, 1.0)
    return torch.nn.functional.pad(main, (0, _COMPONENTS - count))
