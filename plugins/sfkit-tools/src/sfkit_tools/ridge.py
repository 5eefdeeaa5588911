"""Ridge regression as a probe: what a linear map reads from features, on episodes that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
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
    """A linear map from standardized features to targets, fitted by :meth:`fit` in float64.

    Attributes:
        model: scikit-learn's ``StandardScaler`` and ``Ridge``.
        offset: ``(k,)`` float64, mean of the training targets: the *mean predictor* returns it for every sample.
        alpha: The regularization strength that was picked.
    """

    model: Pipeline
    offset: Tensor
    alpha: float

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, groups: Tensor, alphas: Sequence[float] = DEFAULT_ALPHAS) -> RidgeProbe:
        """Fit on a training part; cross-validation *within* it picks the regularization.

        Minimizes ``|x w - y|^2 / n + alpha |w|^2`` over standardized features. The cross-validation holds out whole
        groups, since frames of one episode are near copies of each other. The fit uses its arguments alone: pass the
        training part only.

        Args:
            x: ``(n, d)`` features.
            y: ``(n, k)`` targets.
            groups: ``(n,)`` integer identity of each sample's group (episode).
            alphas: Regularization strengths to choose from.

        Raises:
            ProbeError: Fewer than two groups, wrong shapes, NaN or infinity, or a strength that is not positive.
        """
        _check(x, y)
        if groups.shape != x.shape[:1]:
            raise ProbeError(
                f"groups has shape {tuple(groups.shape)} for {len(x)} samples.", "Give one for each sample."
            )
        if not alphas or min(alphas) <= 0:
            raise ProbeError("The regularization strengths must be positive.")
        features, targets = _array(x), _array(y)
        alpha = alphas[0] if len(alphas) == 1 else _pick(features, targets, _folds(groups), alphas)
        offset = torch.from_numpy(targets.mean(0)).to(y.device)
        return cls(_fit(features, targets, [alpha]), offset, alpha)

    def predict(self, x: Tensor) -> Tensor:
        """``(n, k)`` float64 predictions for ``(n, d)`` features, on their device."""
        return torch.from_numpy(self.model.predict(_array(x)).reshape(len(x), -1)).to(x.device)


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


def probe_error(probe: RidgeProbe, x: Tensor, y: Tensor) -> ProbeScore:
    """Score a probe on other samples than those of its fit.

    Args:
        probe: The fitted probe.
        x: ``(n, d)`` features.
        y: ``(n, k)`` targets.

    Raises:
        ProbeError: No sample, wrong shapes, NaN or infinity.
    """
    _check(x, y)
    return score_predictions(probe.predict(x), y.detach().double(), probe.offset.to(y.device))


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


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ProbeError(f"Features {tuple(x.shape)} and targets {tuple(y.shape)} must be (n, d) and (n, k).")
    if len(x) == 0:
        raise ProbeError("There is no sample.", "Look at what was masked or filtered out.")
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ProbeError("Features or targets contain NaN or infinity.", "Leave masked samples out before fitting.")


def _array(values: Tensor) -> NDArray[Any]:
    return values.detach().double().cpu().numpy()


def _folds(groups: Tensor) -> NDArray[Any]:
    """``(n,)`` int: the fold of each sample; all samples of a group are in one fold."""
    names, group = np.unique(groups.cpu().numpy(), return_inverse=True)
    if len(names) < _MIN_GROUPS:
        raise ProbeError(
            f"The samples come from {len(names)} group(s); picking the regularization needs at least two.",
            "Fit on more episodes, or give a single strength in `alphas`.",
        )
    # A fixed shuffle: neighboring episodes often show one task.
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).numpy()
    fold = np.empty_like(order)
    fold[order] = np.arange(len(names)) % _FOLDS
    return fold[group]


def _pick(x: NDArray[Any], y: NDArray[Any], fold: NDArray[Any], alphas: Sequence[float]) -> float:
    """The strength with the least squared error on held-out groups; the larger one of equals."""
    # One fit of all strengths computes the features' products once, but holds the targets as often as there are any.
    together = len(alphas) * y.shape[1] <= x.shape[1]
    batches = [tuple(alphas)] if together else [(alpha,) for alpha in alphas]
    errors = dict.fromkeys(alphas, 0.0)
    for inside, outside in PredefinedSplit(fold).split():
        seen, target, unseen, wanted = x[inside], y[inside], x[outside], y[outside, None]
        for batch in batches:
            predicted = _fit(seen, target, batch).predict(unseen).reshape(len(unseen), len(batch), -1)
            for alpha, error in zip(batch, np.square(predicted - wanted).sum((0, 2)), strict=True):
                errors[alpha] += float(error)
    return max(alpha for alpha, error in errors.items() if error <= min(errors.values()))


def _fit(x: NDArray[Any], y: NDArray[Any], alphas: Sequence[float]) -> Pipeline:
    """A model whose outputs are those of all strengths side by side, ``(n, len(alphas) * k)``."""
    penalties = np.repeat(alphas, y.shape[1]) * len(x)  # scikit-learn adds the errors up, instead of their mean
    model = make_pipeline(StandardScaler(), Ridge(penalties, solver="cholesky"))
    return model.fit(x, np.tile(y, len(alphas)))
