"""The depth probe: how well a token predicts the depth of its patch, relative to the mean depth of its position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.views.types import FeatureMap, Views
from sfkit_tools.ridge import DEFAULT_ALPHAS, ProbeError, RidgeProbe, score_predictions

_CM = 100.0


def token_depth(
    views: Views, grid: tuple[int, int], *, depth_min: float = 0.05, depth_max: float = 10.0, min_valid: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mean valid depth of each token's patch.

    Args:
        views: Views with ``depth``, at the resolution of the view.
        grid: Rows and columns of tokens.
        depth_min: Depth below this many meters is invalid (so are 0 and NaN).
        depth_max: Depth beyond this many meters is invalid.
        min_valid: Share of a patch's pixels that must be valid.

    Returns:
        ``(b, v, gh, gw)`` float32 meters (0 where invalid), and the bool mask of valid tokens, of that shape.

    Raises:
        ProbeError: The views have no depth.
        ShapeError: The view does not divide into the grid.
    """
    if views.depth is None:
        raise ProbeError("These views carry no depth.", "Pass cameras=..., and batches that hold depth maps.")
    (h, w), (gh, gw) = views.size, grid
    if h % gh or w % gw:
        raise ShapeError(f"A view of {h}x{w} pixels does not divide into a grid of {gh}x{gw} tokens.")
    depth = views.depth.float()
    valid = views.valid & (depth >= depth_min) & (depth <= depth_max)
    b, v = depth.shape[:2]
    blocks = (b, v, gh, h // gh, gw, w // gw)
    total = torch.where(valid, depth, 0.0).reshape(blocks).sum((3, 5))
    count = valid.reshape(blocks).sum((3, 5))
    mask = count >= max(1.0, min_valid * (h // gh) * (w // gw))
    return torch.where(mask, total / count.clamp(min=1), 0.0), mask


@dataclass(frozen=True)
class DepthSamples:
    """Tokens with the depth of their patches.

    Attributes:
        tokens: ``(n, v, gh, gw, d)`` float.
        depth: ``(n, v, gh, gw)`` meters.
        mask: ``(n, v, gh, gw)`` bool: both the token and its depth are valid.
        groups: ``(n,)`` long: the episode of each frame.
        names: Name of each view.
    """

    tokens: Tensor
    depth: Tensor
    mask: Tensor
    groups: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, features: FeatureMap, views: Views, groups: Tensor) -> DepthSamples:
        """Samples from the result of ``capture_tokens`` and the ``(b,)`` episodes of the batch."""
        depth, known = token_depth(views, features.grid)
        return cls(features.values.float(), depth, features.mask & known, groups, views.names)

    @classmethod
    def cat(cls, parts: Sequence[DepthSamples]) -> DepthSamples:
        """Concatenate batches."""
        fields = ("tokens", "depth", "mask", "groups")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
        return cls(**joined, names=parts[0].names)


@dataclass(frozen=True)
class DepthScore:
    """Score on unseen frames, for residual depth: depth minus the mean depth of the token's position.

    Attributes:
        r2: Explained share of the variance of residual depth; 0 is the mean predictor of each position.
        rmse_cm: Root mean squared error in centimeters.
        mean_rmse_cm: The same for the mean predictor of each position.
        samples: Number of tokens.
    """

    r2: float
    rmse_cm: float
    mean_rmse_cm: float
    samples: int


@dataclass(frozen=True)
class DepthProbe:
    """One ridge regression for each view, from a token to its patch's depth, both minus the mean of their position.

    With a fixed camera, the position of a patch predicts most of its depth. Subtracting the means of the training part
    from tokens and depth equals one constant per position in the regression: the score measures the remainder only.

    Attributes:
        names: Name of each view.
        token_mean: ``(v, gh, gw, d)`` over the training part.
        depth_mean: ``(v, gh, gw)`` over the training part, meters.
        probes: The regression of each view; None for a view without valid tokens.
    """

    names: tuple[str, ...]
    token_mean: Tensor
    depth_mean: Tensor
    probes: tuple[RidgeProbe | None, ...]

    @classmethod
    @torch.no_grad()
    def fit(cls, samples: DepthSamples, alphas: Sequence[float] = DEFAULT_ALPHAS) -> DepthProbe:
        """Fit on the training part.

        Raises:
            ProbeError: No token is valid, or there are too few episodes (see :meth:`RidgeProbe.fit`).
        """
        if not bool(samples.mask.any()):
            raise ProbeError("No token has a valid depth.", "Look at the depth maps, their unit and their range.")
        token_mean = position_mean(samples.tokens.double(), samples.mask)
        depth_mean = position_mean(samples.depth.double().unsqueeze(-1), samples.mask).squeeze(-1)
        probes: list[RidgeProbe | None] = []
        for view in range(len(samples.names)):
            x, y, groups = _residuals(samples, view, token_mean, depth_mean)
            probes.append(RidgeProbe.fit(x, y, groups, alphas) if len(x) else None)
        return cls(samples.names, token_mean, depth_mean, tuple(probes))

    @torch.no_grad()
    def score(self, samples: DepthSamples) -> tuple[DepthScore, dict[str, DepthScore]]:
        """Score on frames outside the training part.

        Returns:
            The score over all views, and the score of each view by name.

        Raises:
            ProbeError: No token is valid.
        """
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        for view, (name, probe) in enumerate(zip(self.names, self.probes, strict=True)):
            x, y, _ = _residuals(samples, view, self.token_mean, self.depth_mean)
            if probe is not None and len(x):
                parts[name] = (probe.predict(x), y)
        if not parts:
            raise ProbeError("No token of these frames has a valid depth, or no view was fitted.")
        predicted, target = (torch.cat(column) for column in zip(*parts.values(), strict=True))
        return _score(predicted, target), {name: _score(*pair) for name, pair in parts.items()}


def position_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(n, v, gh, gw, d)`` over valid samples, ``(v, gh, gw, d)``; 0 at positions that are never valid."""
    kept = torch.where(mask.unsqueeze(-1), values, 0.0).sum(0)
    return kept / mask.sum(0).clamp(min=1).unsqueeze(-1)


def _residuals(
    samples: DepthSamples, view: int, token_mean: Tensor, depth_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``(m, d)``, depths ``(m, 1)`` and groups ``(m,)`` of the valid tokens of one view."""
    mask = samples.mask[:, view]
    x = (samples.tokens[:, view].double() - token_mean[view])[mask]
    y = (samples.depth[:, view].double() - depth_mean[view])[mask]
    groups = samples.groups[:, None, None].expand_as(mask)[mask]
    return x, y.unsqueeze(1), groups


def _score(predicted: Tensor, target: Tensor) -> DepthScore:
    """Score of ``(m, 1)`` residual depths in meters; the mean predictor's residual is 0."""
    score = score_predictions(predicted, target, torch.zeros_like(target))
    return DepthScore(score.r2, score.rmse * _CM, score.mean_rmse * _CM, score.samples)
