"""Linear centered kernel alignment, with weights on the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfkit.errors import ShapeError


def linear_cka(x: Tensor, y: Tensor, weights: Tensor | None = None, groups: Tensor | None = None) -> float:
    """Similarity of two sets of features of the same tokens, 0 to 1.

    ``|Xc^T Yc|^2 / (|Xc^T Xc| |Yc^T Yc|)`` with Frobenius norms and centered features (Kornblith et al., "Similarity of
    Neural Network Representations Revisited", 2019, section 3). It is invariant to rotation, isotropic scaling and
    translation of either side. With fewer tokens than features it is too high; compare values of equal widths only.

    Args:
        x: ``(n, d)`` features.
        y: ``(n, k)`` features.
        weights: ``(n,)`` multiplicity of each token; one by default.
        groups: ``(n,)`` sample of each token; the sums then leave out pairs of tokens of one sample. Such pairs are
            always similar, and a resample that repeats a sample has more of them, which would raise the value.

    Raises:
        ShapeError: The numbers of tokens differ.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"Features {tuple(x.shape)} and {tuple(y.shape)} must be (n, d) and (n, k).")
    weights = torch.ones(len(x)) if weights is None else weights
    apart = torch.ones(len(x), len(x)) if groups is None else groups[:, None] != groups[None, :]
    return cka_of_products([products(x)], products(y), weights, apart)[0]


def products(x: Tensor) -> Tensor:
    """``(n, d)`` features to ``(n, n)`` float64 inner products of the centered features."""
    centered = x.double() - x.double().mean(0)
    return centered @ centered.T


def cka_of_products(several: Sequence[Tensor], m: Tensor, weights: Tensor, apart: Tensor) -> list[float]:
    """CKA of several sets of features with one other; NaN where a side is constant.

    Args:
        several: Inner products ``(n, n)`` of each set.
        m: Inner products ``(n, n)`` of the other side.
        weights: ``(n,)`` multiplicity of each token.
        apart: ``(n, n)`` bool: pairs that count.
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
    """Center inner products ``(n, n)`` about the mean with weights ``(n,)`` that sum to one."""
    row = k @ share
    return k - row[:, None] - row[None, :] + share @ row
