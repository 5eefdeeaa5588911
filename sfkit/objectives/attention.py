"""Attention maps of student and teacher, compared."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError
from sfkit.objectives.base import Objective, masked_mean, precise


class AttentionOptions(Options):
    """Options of :class:`AttentionObjective`."""

    heads: int | None = Field(
        default=None, ge=1, description="The first so many heads of both sides; by default as many as both have."
    )


class Heads(nn.Module):
    """How queries and keys of the two sides split into heads. Nothing of it is trained.

    Args:
        student: Heads, and channels of each.
        teacher: Likewise.
        count: Heads that are compared, the first ones of either.
    """

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int], count: int) -> None:
        super().__init__()
        self.student, self.teacher, self.count = student, teacher, count

    def logits(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """``(n, tokens, 2 * heads * width)``, queries before keys, to ``(n, count, tokens, tokens)``."""
        split = precise(tokens).reshape(*tokens.shape[:2], 2, *shape)[..., : self.count, :]
        queries, keys = split.transpose(1, 3).unbind(2)
        logits: Tensor = queries @ keys.transpose(-1, -2)
        return logits


class AttentionObjective(Objective):
    """``mean_h mean_i sum_j A_hij log(A_hij / a_hij)``: how the student's attention ``a`` differs from ``A``.

    ``a`` and ``A`` are softmaxes over the valid patches ``j`` of the view of patch ``i``, of the products of scaled
    queries and keys: what a block's heads would do if the patches of that view were all there is. The ``h``-th head of
    the student is held against the ``h``-th of the teacher, and ``i`` runs over the valid patches of a sample. Maps of
    queries and keys are brought to one grid as all maps are; as that is linear in both, the logits are those of the
    teacher, resampled bilinearly on both sides.

    It compares no features, so it has neither projector nor transforms; it trains the blocks *up to and including* the
    queries and keys of the student's block. ``(b, v, gh, gw, 2 heads width)`` of either width to ``(b,)``; 0 at
    equality, and for a patch that is the only valid one of its view.

    Source: the attention term of HASTE, arXiv 2505.16792 (section on holistic alignment): cross-entropy of the two
    attentions, which is the same up to the teacher's entropy and has the same gradient.

    Raises:
        ConfigError: Called without the split into heads, which :func:`sfkit.training.step.align` passes; or more heads
            are asked for than there are.
        ShapeError: There is a single patch in each view, hence nothing to attend to.
    """

    name = "attention"
    reads = "attention"
    Options: ClassVar[type[Options]] = AttentionOptions
    options: AttentionOptions

    def attention_head(self, student: tuple[int, int], teacher: tuple[int, int]) -> nn.Module:
        most = min(student[0], teacher[0])
        count = most if self.options.heads is None else self.options.heads
        if count > most:
            raise ConfigError(
                f"Objective {self.name!r} was asked for {count} heads; the student has {student[0]} and the teacher "
                f"{teacher[0]}.",
                f"Give heads={most}, or leave it out.",
            )
        return Heads(student, teacher, count)

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        if not isinstance(head, Heads):
            raise ConfigError(
                f"Objective {self.name!r} was called without knowing the heads.",
                "Let SpatialForcing.wrap build it, or call with_head(..., objective.attention_head(student, teacher)).",
            )
        b, v, gh, gw, _ = student.shape
        if gh * gw < 2:
            raise ShapeError(
                f"Objective {self.name!r} finds nothing to attend to in a grid of {gh} x {gw}.",
                "Choose another objective.",
            )
        others = ~mask.reshape(b * v, 1, 1, gh * gw)

        def attention(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
            logits = head.logits(tokens.reshape(b * v, gh * gw, -1), shape)
            # The lowest finite number, not -inf: the gradient of a view without a valid token would pass through NaN.
            return logits.masked_fill(others, torch.finfo(logits.dtype).min).log_softmax(-1)

        own, wanted = attention(student, head.student), attention(teacher, head.teacher)
        distance = (wanted.exp() * (wanted - own)).masked_fill(others, 0.0).sum(-1).mean(1)
        return masked_mean(distance.reshape(mask.shape), mask)
