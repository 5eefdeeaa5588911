"""Ridge regression as a linear probe, scored on unseen episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sfkit.errors import SfkitError

Array: TypeAlias = "NDArray[np.float64]"

#: Default regularization strengths, relative to the variance of a standardized feature.
DEFAULT_ALPHAS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 9))

_FOLDS = 4
_MIN_GROUPS = 2


class ProbeError(SfkitError):
    """The data do not fit a probe, or its score."""


@dataclass(frozen=True)
class RidgeProbe:
    """A linear map from standardized features to targets, fitted by :meth:`fit` in float64.

    Attributes:
        model: scikit-learn's ``StandardScaler`` and ``Ridge``.
        offset: ``(k,)`` float64, mean of the training targets: the output of the *mean predictor* for every sample.
        alpha: The chosen regularization strength.
    """

    model: Pipeline
    offset: Tensor
    alpha: float

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, groups: Tensor, alphas: Sequence[float] = DEFAULT_ALPHAS) -> RidgeProbe:
        """Fit on the training part; cross-validation within it chooses the regularization.

        Minimizes ``|x w - y|^2 / n + alpha |w|^2`` over standardized features. The cross-validation holds out whole
        groups, since frames of one episode are nearly equal.

        Args:
            x: ``(n, d)`` features of the training part.
            y: ``(n, k)`` targets of the training part.
            groups: ``(n,)`` integer group (episode) of each sample.
            alphas: Regularization strengths to choose from.

        Raises:
            ProbeError: There are fewer than two groups, shapes do not fit, a value is not finite, or a strength is not
                positive.
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
    """Score of a probe on unseen samples; errors in the unit of the target.

    Attributes:
        error: Mean Euclidean distance between prediction and target.
        rmse: Root of the mean squared Euclidean distance.
        r2: One minus the ratio of the squared error to the mean predictor's: 1 is perfect, 0 is the mean predictor.
        mean_error: ``error`` of the mean predictor, whose output is the training mean.
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
    """Score a probe on samples outside its training part.

    Args:
        probe: The fitted probe.
        x: ``(n, d)`` features.
        y: ``(n, k)`` targets.

    Raises:
        ProbeError: There is no sample, shapes do not fit, or a value is not finite.
    """
    _check(x, y)
    return score_predictions(probe.predict(x), y.detach().double(), probe.offset.to(y.device))


def score_predictions(predicted: Tensor, y: Tensor, mean: Tensor) -> ProbeScore:
    """Score predictions of targets ``(n, k)``; ``mean`` is the mean predictor's output, ``(k,)`` or ``(n, k)``."""
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
    """Refuse anything but finite ``(n, d)`` features and ``(n, k)`` targets with at least one sample."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ProbeError(f"Features {tuple(x.shape)} and targets {tuple(y.shape)} must be (n, d) and (n, k).")
    if len(x) == 0:
        raise ProbeError("There is no sample.", "Look at what was masked or filtered out.")
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ProbeError("Features or targets contain NaN or infinity.", "Leave masked samples out before fitting.")


def _array(values: Tensor) -> Array:
    """``(n, d)`` float64, on the CPU."""
    return values.detach().double().cpu().numpy()


def _folds(groups: Tensor) -> NDArray[np.int64]:
    """Groups ``(n,)`` to the fold of each sample, ``(n,)``; all samples of a group are in one fold."""
    names, group = np.unique(groups.cpu().numpy(), return_inverse=True)
    if len(names) < _MIN_GROUPS:
        raise ProbeError(
            f"The samples come from {len(names)} group(s); picking the regularization needs at least two.",
            "Fit on more episodes, or give a single strength in `alphas`.",
        )
    # Shuffled with a fixed seed, since consecutive episodes often have the same task.
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).numpy()
    fold = np.empty_like(order)
    fold[order] = np.arange(len(names)) % _FOLDS
    return fold[group]


def _pick(x: Array, y: Array, fold: NDArray[np.int64], alphas: Sequence[float]) -> float:
    """The strength with the least squared error on held-out groups; of equals, the largest."""
    # One fit of all strengths computes the products of features once, and holds one copy of the targets per strength.
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


def _fit(x: Array, y: Array, alphas: Sequence[float]) -> Pipeline:
    """A model with the outputs of all strengths concatenated, ``(n, len(alphas) * k)``."""
    penalties = np.repeat(alphas, y.shape[1]) * len(x)  # scikit-learn minimizes the sum of errors, not their mean
    model = make_pipeline(StandardScaler(), Ridge(penalties, solver="cholesky"))
    return model.fit(x, np.tile(y, len(alphas)))
