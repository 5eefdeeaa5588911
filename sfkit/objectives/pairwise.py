"""Objectives over pairs of patches: contrastive, relational, and attention maps."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError
from sfkit.objectives.base import Objective, masked_mean, precise, unit
from sfkit.utils.distributed import is_distributed


@torch.no_grad()
def tokens_of_other_ranks(mine: Tensor | None) -> Tensor:
    """The tokens of all other ranks, without gradient; every rank must call this equally often.

    Args:
        mine: ``(n, d)`` of this rank, ``n`` may differ between ranks; None where this rank has nothing to give and
            needs nothing.

    Returns:
        ``(m, d)`` in the order of ranks; empty without ``torch.distributed``.
    """
    if mine is None:
        device = "cpu"
        if is_distributed() and dist.get_backend() == "nccl":
            device = f"cuda:{torch.cuda.current_device()}"
        mine = torch.zeros(0, 0, device=device)
    if not is_distributed():
        return mine.detach()[:0]
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, tuple(mine.shape))
    longest, width = max(n for n, _ in shapes), max(d for _, d in shapes)
    # Collectives want equal shapes.
    padded = mine.new_zeros(longest, width)
    if mine.numel():
        padded[: mine.shape[0]] = mine.detach()
    everybody = [torch.empty_like(padded) for _ in shapes]
    if padded.numel():
        dist.all_gather(everybody, padded)
    found = [tokens[:n] for tokens, (n, _) in zip(everybody, shapes, strict=True)]
    return torch.cat([padded[:0], *(tokens for rank, tokens in enumerate(found) if rank != dist.get_rank())])


class InfoNCEOptions(Options):
    """Options of :class:`InfoNCEObjective`."""

    temperature: float = Field(default=0.07, gt=0, description="Divides the cosine similarities.")
    negatives: Literal["view", "sample", "batch", "devices"] = Field(
        default="sample",
        description="Where the teacher's other patches come from: the same view, all views of the sample, the whole "
        "batch, or the batches of all ranks.",
    )


class InfoNCEObjective(Objective):
    """``-log( exp(cos(p_i, t_i) / tau) / sum_j exp(cos(p_i, t_j) / tau) )``, averaged over the valid tokens ``i``.

    ``j`` runs over the valid teacher patches of ``negatives``, ``i`` among them; a token without a negative contributes
    0. Each patch must be told from all others: the teacher's near-identical neighbors (table, wall) count as negatives
    too, so prefer few and distinct patches. With ``batch`` and ``devices`` a sample's loss depends on the others.
    Memory goes with the square of the tokens among which negatives are sought. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    With ``devices``, ranks exchange the teacher's tokens, which carry no gradient; a rank that does not align in a
    training step takes part with none.

    Source: CPC, arXiv 1807.03748, equation 4; temperature 0.07 as in MoCo, arXiv 1911.05722, section 3.3.

    Raises:
        ShapeError: There is one token only, hence no negative.
    """

    name = "info-nce"
    Options: ClassVar[type[Options]] = InfoNCEOptions
    options: InfoNCEOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        b, v, gh, gw, _ = student.shape
        negatives = self.options.negatives
        groups = {"view": b * v, "sample": b}.get(negatives, 1)
        count = mask.numel() // groups if groups else 0
        # Other ranks may have some.
        if count < 2 and not (negatives == "devices" and is_distributed()):
            raise ShapeError(
                f"Objective {self.name!r} finds no negative: {count} token of {b} samples, {v} views and a grid of "
                f"{gh} x {gw}, with negatives of the {negatives}.",
                'Choose negatives="batch" with several samples, or another objective.',
            )
        p, t = (unit(x).reshape(groups, count, -1) for x in (student, teacher))
        others = ~mask.reshape(groups, 1, count)
        # The lowest finite number, not -inf: the gradient of a sample without a valid token would pass through NaN.
        similarity = (p @ t.transpose(1, 2) / self.options.temperature).masked_fill(others, torch.finfo(p.dtype).min)
        own = (p * t).sum(-1) / self.options.temperature
        if negatives == "devices":
            far = tokens_of_other_ranks(t[~others.squeeze(1)])
            similarity = torch.cat([similarity, p @ far.t() / self.options.temperature], -1)
        return masked_mean((similarity.logsumexp(-1) - own).reshape(mask.shape), mask)

    @property
    def has_collectives(self) -> bool:
        return self.options.negatives == "devices"

    def participate_without_data(self) -> None:
        if self.has_collectives:
            tokens_of_other_ranks(None)


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
