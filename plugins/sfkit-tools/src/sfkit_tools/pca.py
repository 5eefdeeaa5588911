"""Feature maps as images: the three principal components of the tokens as red, green and blue."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from sfkit.views.types import FeatureMap
from sfkit_tools.ridge import ProbeError

_COMPONENTS = 3
_MIN_TOKENS = 2


@torch.no_grad()
def pca_colors(features: FeatureMap, *, center_positions: bool = False, clip: float = 0.02) -> Tensor:
    """Project tokens on their three principal components and scale those to [0, 1].

    The components come from the valid tokens of the whole batch: colors are comparable between its images, and not
    between two calls. The largest loading of a component fixes its sign, so that equal input gives equal colors.

    Args:
        features: ``(b, v, gh, gw, d)`` with mask.
        center_positions: Subtract the batch mean of each position first, which shows the changes between frames.
        clip: Share of values to clip at each end, so that an outlier does not compress the range of all others.

    Returns:
        ``(b, v, gh, gw, 3)`` float32 in [0, 1]; masked tokens are NaN.

    Raises:
        ProbeError: There are fewer than two valid tokens, or a valid token is not finite.
    """
    values, mask = features.values.double(), features.mask
    if int(mask.sum()) < _MIN_TOKENS:
        raise ProbeError("PCA colors need at least two valid tokens.")
    if not bool(values[mask].isfinite().all()):
        raise ProbeError("Valid tokens contain NaN or infinity.")
    if center_positions:
        kept = torch.where(mask.unsqueeze(-1), values, 0.0)
        values = values - kept.sum(0) / mask.sum(0).clamp(min=1).unsqueeze(-1)
    projected = _project(values[mask].cpu().numpy())
    low, high = np.quantile(projected, (clip, 1 - clip), axis=0)
    span = high - low
    scaled = np.where(span > 0, (projected - low) / np.maximum(span, 1e-300), 0.5).clip(0, 1)
    colors = torch.full((*mask.shape, _COMPONENTS), torch.nan)
    colors[mask.cpu()] = torch.from_numpy(scaled).float()
    return colors


def _project(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n, d)`` tokens to ``(n, 3)`` components in order of variance; 0 where the tokens span fewer dimensions."""
    pca = PCA(min(_COMPONENTS, *tokens.shape), svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):  # scikit-learn divides by the total variance, which is 0 for equal tokens
        # This solver subtracts the mean from products of features, which loses all digits where the mean is large.
        projected = pca.fit_transform(tokens - tokens.mean(0))
    variance = pca.explained_variance_
    projected[:, variance <= 1e-12 * variance[0]] = 0.0
    return np.pad(projected, ((0, 0), (0, _COMPONENTS - projected.shape[1])))
