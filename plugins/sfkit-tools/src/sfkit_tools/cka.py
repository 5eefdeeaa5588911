"""Linear centered kernel alignment, with weights on the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfkit.errors import ShapeError


def linear_cka(x: Tensor, y: Tensor, weights: Tensor | None = None, groups: Tensor | None = None) -> float:
    """Similarity of two sets of features of the same tokens, 0 to 1.

    ``|Xc^T Yc|^2 / (|Xc^T Xc| |Yc^T Yc|)`` with Frobenius norms and centered features (Kornblith et al., "Similarity of
    Neural Network Representations Revisited", 2019, section 3). It does not change when either is rotated, scaled as
    a whole, or moved. With fewer tokens than features it is too high; so compare values of equal widths.

    Args:
        x: ``(n, d)`` features.
        y: ``(n, k)`` features.
        weights: ``(n,)`` how often each token counts; once by default.
        groups: ``(n,)`` the sample that each token is of: pairs of tokens of one sample are then left out of the sums.
            A token is always like itself, and one that a resample holds twice would be so more often: with them, the
            value rises with every repetition.

    Raises:
        ShapeError: They do not hold the same number of tokens.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"Features {tuple(x.shape)} and {tuple(y.shape)} must be (n, d) and (n, k).")
    weights = torch.ones(len(x)) if weights is None else weights
    apart = torch.ones(len(x), len(x)) if groups is None else groups[:, None] != groups[None, :]
    return cka_of_products([products(x)], products(y), weights, apart)[0]


def products(x: Tensor) -> Tensor:
    """``(n, n)`` float64 inner products of the tokens, about their mean."""
    centered = x.double() - x.double().mean(0)
    return centered @ centered.T


def cka_of_products(several: Sequence[Tensor], m: Tensor, weights: Tensor, apart: Tensor) -> list[float]:
    """CKA of each of several with one other, over pairs that are ``apart``. NaN where a side is constant.

    Args:
        several: Inner products ``(n, n)``.
        m: Those of the other side.
        weights: ``(n,)``.
        apart: ``(n, n)``: which pairs count.
    """
    share = (weights / weights.sum()).to(m)
    pair = torch.outer(share, share) * apart.to(share)
    m = _centered(m, share)
    weighted, other = pair * m, float((pair * m * m).sum())
    found = []
    for k in (_centered(one, share) for one in several):
        both, own = float((weighted * k).sum()), float((pair * k * k).sum())
        found.append(both / (own * other) ** 0.5 if own > 0 and other > 0 else float("nan"))
    return found


def _centered(k: Tensor, share: Tensor) -> Tensor:
    row = k @ share
    return k - row[:, None] - row[None, :] + share @ row
