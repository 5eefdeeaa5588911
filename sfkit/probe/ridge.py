"""Closed-form ridge regression as a probe: what can be read linearly from features, on episodes not seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.errors import SfkitError

#: Strengths that are tried unless others are given; they are relative to the mean variance of a feature (which is 1).
DEFAULT_ALPHAS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 9))

_FOLDS = 4
_MIN_GROUPS = 2


class ProbeError(SfkitError):
    """A probe cannot be fitted to, or scored on, what it was given."""


@dataclass(frozen=True)
class RidgeProbe:
    """A linear read-out ``y = (x - mean) / scale @ coefficients + offset``, fitted by :meth:`fit`. All float64.

    Attributes:
        mean: ``(d,)`` of the training features.
        scale: ``(d,)`` their standard deviation (1 where a feature is constant).
        coefficients: ``(d, k)`` on standardized features.
        offset: ``(k,)`` mean of the training targets: what the *mean predictor* says everywhere.
        alpha: The regularization that was picked.
    """

    mean: Tensor
    scale: Tensor
    coefficients: Tensor
    offset: Tensor
    alpha: float

    @classmethod
    @torch.no_grad()
    def fit(cls, x: Tensor, y: Tensor, groups: Tensor, alphas: Sequence[float] = DEFAULT_ALPHAS) -> RidgeProbe:
        """Fit on a training part; the regularization is picked by cross-validation *within* it.

        Whole groups are held out together, since frames of one episode are near copies of each other. Nothing outside
        the arguments is looked at: pass the training part only.

        Args:
            x: ``(n, d)`` features.
            y: ``(n, k)`` targets.
            groups: ``(n,)`` integer identity of each sample's group (episode).
            alphas: Regularization strengths to choose from, on standardized features, for each sample.

        Raises:
            ProbeError: Fewer than two groups, wrong shapes, NaN or infinity, or a strength that is not positive.
        """
        x, y = _checked(x, y)
        if groups.shape != x.shape[:1]:
            raise ProbeError(
                f"groups has shape {tuple(groups.shape)} for {len(x)} samples.", "Give one for each sample."
            )
        if not alphas or min(alphas) <= 0:
            raise ProbeError("The regularization strengths must be positive.")
        alpha = alphas[0] if len(alphas) == 1 else _pick(x, y, groups.to(x.device), alphas)
        mean, scale = _moments(x)
        solve = _solver((x - mean) / scale, y - y.mean(0))
        return cls(mean, scale, solve(alpha), y.mean(0), alpha)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """``(n, k)`` float64 predictions for ``(n, d)`` features."""
        return (x.to(self.mean) - self.mean) / self.scale @ self.coefficients + self.offset


@dataclass(frozen=True)
class ProbeScore:
    """How a probe does on samples it has not seen; errors in the unit of the target.

    Attributes:
        error: Mean Euclidean distance between prediction and target.
        rmse: Root of the mean squared Euclidean distance.
        r2: Share of the squared error of the mean predictor that is removed: 1 is perfect, 0 is no better than it.
        mean_error: ``error`` of the mean predictor, which says the training mean everywhere.
        mean_rmse: ``rmse`` of the mean predictor.
        samples: Number of samples.
    """

    error: float
    rmse: float
    r2: float
    mean_error: float
    mean_rmse: float
    samples: int


@torch.no_grad()
def probe_error(probe: RidgeProbe, x: Tensor, y: Tensor) -> ProbeScore:
    """Score a probe on other samples than those of its fit.

    Args:
        probe: The fitted probe.
        x: ``(n, d)`` features.
        y: ``(n, k)`` targets.

    Raises:
        ProbeError: No sample, wrong shapes, NaN or infinity.
    """
    x, y = _checked(x, y)
    return score_predictions(probe.predict(x), y, probe.offset)


def score_predictions(predicted: Tensor, y: Tensor, mean: Tensor) -> ProbeScore:
    """Compare ``(n, k)`` predictions with targets and with ``mean``, ``(k,)`` or ``(n, k)``: the mean predictor's."""
    squared = (predicted - y).square().sum(1)
    baseline = (mean - y).square().sum(1)
    return ProbeScore(
        error=float(squared.sqrt().mean()),
        rmse=float(squared.mean().sqrt()),
        r2=float(1 - squared.sum() / baseline.sum()) if float(baseline.sum()) > 0 else float("nan"),
        mean_error=float(baseline.sqrt().mean()),
        mean_rmse=float(baseline.mean().sqrt()),
        samples=len(y),
    )


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ProbeError(f"Features {tuple(x.shape)} and targets {tuple(y.shape)} must be (n, d) and (n, k).")
    if len(x) == 0:
        raise ProbeError("There is no sample.", "Look at what was masked or filtered out.")
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ProbeError("Features or targets contain NaN or infinity.", "Leave masked samples out before fitting.")
    return x.double(), y.double()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    scale = (x - mean).square().mean(0).sqrt()
    # A constant feature has a deviation of rounding errors: dividing by it would blow noise up.
    constant = scale <= 1e-10 * mean.abs().clamp(min=1e-10)
    return mean, torch.where(constant, torch.ones_like(scale), scale)


def _pick(x: Tensor, y: Tensor, groups: Tensor, alphas: Sequence[float]) -> float:
    """The strength with the least squared error on held-out groups; the larger one of equals."""
    names: Tensor = torch.unique(groups)
    if len(names) < _MIN_GROUPS:
        raise ProbeError(
            f"The samples come from {len(names)} group(s); picking the regularization needs at least two.",
            "Fit on more episodes, or give a single strength in `alphas`.",
        )
    folds = min(_FOLDS, len(names))
    # Dealt out by a fixed shuffle: neighboring episodes often show one task.
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).to(names.device)
    fold_of = torch.empty_like(order)
    fold_of[order] = torch.arange(len(names), device=names.device) % folds
    fold = fold_of[torch.searchsorted(names, groups)]
    errors = torch.zeros(len(alphas), dtype=torch.float64)
    for held in range(folds):
        inside, outside = fold != held, fold == held
        mean, scale = _moments(x[inside])
        offset = y[inside].mean(0)
        solve = _solver((x[inside] - mean) / scale, y[inside] - offset)
        unseen, target = (x[outside] - mean) / scale, y[outside] - offset
        errors += torch.stack([(unseen @ solve(alpha) - target).square().sum().cpu() for alpha in alphas])
    best = float(errors.min())
    return max(alpha for alpha, error in zip(alphas, errors.tolist(), strict=True) if error <= best)


def _solver(x: Tensor, y: Tensor) -> Callable[[float], Tensor]:
    """``alpha -> (d, k)`` minimizing ``|x w - y|^2 / n + alpha |w|^2``, from one decomposition of the smaller Gram."""
    n, d = x.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        projected = vectors.T @ (x.T @ y) / n
        return lambda alpha: vectors @ (projected / (values.clamp(min=0) + alpha).unsqueeze(1))
    values, vectors = torch.linalg.eigh(x @ x.T / n)
    projected = vectors.T @ y / n
    back = x.T @ vectors
    return lambda alpha: back @ (projected / (values.clamp(min=0) + alpha).unsqueeze(1))
