"""Which of several views is the reference: Depth Anything 3's ``saddle_balanced``."""

from __future__ import annotations

import torch
from torch import Tensor

#: Fewer views than this are not looked at: the first is the reference.
SELECT_FROM = 3


def saddle_balanced(tokens: Tensor) -> Tensor:
    """The view that is most average in three respects.

    Each view has three scores: the mean cosine of its token with those of the other views, the token's norm, and the
    variance of its direction's channels. Each score is scaled to [0, 1] over the views of a sample; the view whose
    scores are nearest to one half, in sum, is the reference. In float32 and without a matrix product, whose precision
    is the user's to choose, so that near ties do not depend on settings.

    Args:
        tokens: ``(b, v, dim)``, the class tokens; at least two views.

    Returns:
        ``(b,)`` long, on the device of ``tokens``.
    """
    tokens = tokens.float()
    norm = tokens.norm(dim=-1)
    unit = tokens / norm.unsqueeze(-1)
    others = tokens.shape[1] - 1
    similarity = ((unit * unit.sum(1, keepdim=True)).sum(-1) - 1) / others
    scores = torch.stack((similarity, norm, unit.var(-1)))
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    scaled = (scores - low) / (high - low + 1e-8)
    return (scaled - 0.5).abs().sum(0).argmin(-1)
