"""Similarities between the patches of one sample, compared with the teacher's."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import ShapeError
from sfkit.objectives.base import Objective, unit


class RelationalOptions(Options):
    """Options of :class:`RelationalObjective`."""

    scope: Literal["within", "across", "all"] = Field(
        default="within", description="Pairs of patches of one view (within), of two different views (across), or all."
    )
    distance: Literal["mse", "l1"] = Field(default="mse", description="Squared or absolute difference of similarities.")
    margin: float = Field(default=0.0, ge=0, lt=2, description="Absolute difference that costs nothing.")


class RelationalObjective(Objective):
    """How the Gram matrices of patch similarities differ: ``mean_ij d(cos(p_i, p_j) - cos(t_i, t_j))``.

    The mean runs over the ordered pairs ``i != j`` of valid patches of a sample, within views, across them or both; a
    sample without such a pair contributes 0. ``d`` is the square, or the absolute value, of what exceeds ``margin``.
    It asks for the same arrangement, not for the same features: turning all tokens alike changes nothing, so it says
    least about where a feature *is* and is best summed with ``cosine``. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    Source: Gram anchoring of DINOv3, arXiv 2508.10104, section 4.2 (``within``, ``mse``; there the sum over pairs);
    with ``l1`` and a margin as in VideoREPA, arXiv 2505.23656 (relations within and across frames).

    Raises:
        ShapeError: The grid has no such pair: a single token, or ``across`` with a single view.
    """

    name = "relational"
    Options: ClassVar[type[Options]] = RelationalOptions
    options: RelationalOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        b, v, gh, gw, _ = student.shape
        scope, patches = self.options.scope, gh * gw
        if (v if scope == "across" else patches if scope == "within" else v * patches) < 2:
            raise ShapeError(
                f"Objective {self.name!r} with scope {scope!r} finds no pair of patches in {v} views of {gh} x {gw}.",
                'Choose scope="within" for a single view, or another objective.',
            )
        # Within views, one small matrix for each view instead of one of all: v times less to compute.
        groups = (b * v, patches) if scope == "within" else (b, v * patches)
        p, t = (unit(x).reshape(*groups, -1) for x in (student, teacher))
        valid = mask.reshape(groups)
        wanted = torch.ones(groups[1], groups[1], dtype=torch.bool, device=mask.device)
        if scope == "across":
            view = torch.arange(v, device=mask.device).repeat_interleave(patches)
            wanted = view[:, None] != view
        pairs = valid[:, :, None] & valid[:, None] & wanted.fill_diagonal_(False)
        difference = (p @ p.transpose(1, 2) - t @ t.transpose(1, 2)).abs()
        if self.options.margin:
            difference = (difference - self.options.margin).clamp(min=0)
        distance = difference if self.options.distance == "l1" else difference.square()
        total = distance.masked_fill(~pairs, 0.0).reshape(b, -1).sum(1)
        return total / pairs.reshape(b, -1).sum(1).clamp(min=1)
