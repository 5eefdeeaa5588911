"""Depth Anything 3's choice of the reference view: ``saddle_balanced``."""

from __future__ import annotations

import torch
from torch import Tensor

#: With fewer views the first is the reference.
SELECT_FROM = 3


def saddle_balanced(tokens: Tensor) -> Tensor:
    """Index of the view whose three scores are nearest to the middle of their range.

    The scores of a view are the mean cosine of its token with those of the other views, the token's norm, and the
    variance of the channels of its direction. Each score is scaled to [0, 1] over the views of a sample. The reference
    is the view with the smallest sum of distances from one half.

    Args:
        tokens: ``(b, v, dim)``, the class tokens; at least two views.

    Returns:
        ``(b,)`` long, on the device of ``tokens``.
    """
    # In float32 and without a matrix product: near ties must not depend on the precision settings of matmul.
    tokens = tokens.float()
    norm = tokens.norm(dim=-1)
    unit = tokens / norm.unsqueeze(-1)
    others = tokens.shape[1] - 1
    similarity = ((unit * unit.sum(1, keepdim=True)).sum(-1) - 1) / others
    scores = torch.stack((similarity, norm, unit.var(-1)))
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    scaled = (scores - low) / (high - low + 1e-8)
    return (scaled - 0.5).abs().sum(0).argmin(-1)
