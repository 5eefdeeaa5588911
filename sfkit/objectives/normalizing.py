"""Putting features of student and teacher on one scale before they are subtracted."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.objectives.base import precise, unit


class NormalisedOptions(Options):
    """Options of objectives that subtract features."""

    normalize: Literal["layer", "length", "none"] = Field(
        default="layer",
        description="Each token of both sides: to mean 0 and variance 1 over its channels (layer), to a root mean "
        "square of 1 (length), or as it is (none).",
    )


def normalized(x: Tensor, how: Literal["layer", "length", "none"]) -> Tensor:
    """``x`` ``(..., d)`` with each token normalized, in float32 or better."""
    x = precise(x)
    if how == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return unit(x) * x.shape[-1] ** 0.5 if how == "length" else x
