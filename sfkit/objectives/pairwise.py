"""Objectives over pairs of patches: contrastive, relational, and on attention maps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError
from sfkit.objectives.base import Objective, masked_mean, precise, unit
from sfkit.utils.runtime import is_distributed


@torch.no_grad()
def tokens_of_other_ranks(mine: Tensor | None) -> Tensor:
    """The tokens of all other ranks, without gradient; every rank must call this equally often.

    Args:
        mine: ``(n, d)`` of this rank, ``n`` may differ between ranks; None where this rank neither has nor needs any.

    Returns:
        ``(m, d)`` in the order of ranks; empty without ``torch.distributed``.
    """
    if mine is None:
        # NCCL exchanges CUDA tensors alone, also empty ones.
        nccl = is_distributed() and dist.get_backend() == "nccl"
        mine = torch.zeros(0, 0, device=f"cuda:{torch.cuda.current_device()}" if nccl else "cpu")
    if not is_distributed():
        return mine.detach()[:0]
    # Ranks hold different numbers of valid tokens, so they exchange shapes first.
    shapes = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(shapes, tuple(mine.shape))
    # all_gather needs equal shapes, so each rank pads to the largest.
    padded = mine.new_zeros(max(n for n, _ in shapes), max(d for _, d in shapes))
    if mine.numel():
        padded[: mine.shape[0]] = mine.detach()
    everybody = [torch.empty_like(padded) for _ in shapes]
    if padded.numel():
        dist.all_gather(everybody, padded)
    # The caller has its own tokens.
    del everybody[dist.get_rank()], shapes[dist.get_rank()]
    return torch.cat([padded[:0], *(tokens[:n] for tokens, (n, _) in zip(everybody, shapes, strict=True))])


def _exclude(logits: Tensor, excluded: Tensor) -> Tensor:
    """``(..., n)`` logits with the lowest number where ``excluded`` ``(..., n)`` is True.

    The lowest finite number and not -inf: the gradient of a sample without a valid token would pass through NaN.
    """
    return logits.masked_fill(excluded, torch.finfo(logits.dtype).min)


class InfoNCEOptions(Options):
    """Options of :class:`InfoNCEObjective`."""

    temperature: float = Field(default=0.07, gt=0, description="Divides the cosine similarities.")
    negatives: Literal["view", "sample", "batch", "devices"] = Field(
        default="sample", description="The teacher's other patches: of the view, the sample, the batch or all ranks."
    )


class InfoNCEObjective(Objective):
    """``-log( exp(cos(p_i, t_i) / tau) / sum_j exp(cos(p_i, t_j) / tau) )``, averaged over the valid tokens ``i``.

    ``j`` runs over the valid teacher patches of ``negatives``, ``i`` among them; a token without a negative contributes
    0. The loss separates each patch from all others. The teacher's near-identical neighbors (table, wall) count as
    negatives too, so few and distinct patches work best. With ``batch`` and ``devices`` the loss of a sample depends on
    the other samples. Memory grows with the square of the number of tokens in the set of negatives.

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
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
        b, v, gh, gw, _ = student.shape
        negatives = self.options.negatives
        groups = {"view": b * v, "sample": b}.get(negatives, 1)
        count = mask.numel() // groups if groups else 0
        # Other ranks may have some.
        if count < 2 and not (negatives == "devices" and is_distributed()):
            raise ShapeError(
                f"Objective {self.name!r} finds no negative in the {negatives}: b, v, gh, gw are {b, v, gh, gw}.",
                'Choose negatives="batch" with several samples, or another objective.',
            )
        p, t = (unit(x).reshape(groups, count, -1) for x in (student, teacher))
        invalid = ~mask.reshape(groups, 1, count)
        similarity = _exclude(p @ t.transpose(1, 2) / self.options.temperature, invalid)
        # Not the diagonal of the similarities: it is masked where the token is.
        own = (p * t).sum(-1) / self.options.temperature
        if negatives == "devices":
            others = tokens_of_other_ranks(t[~invalid.squeeze(1)])
            similarity = torch.cat([similarity, p @ others.t() / self.options.temperature], -1)
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
    It compares the arrangement of the features, not the features: a rotation of all tokens changes nothing. So it says
    least about where a feature *is*, and works best in a sum with ``cosine``.

    Source: Gram anchoring of DINOv3, arXiv 2508.10104, section 4.2 (``within``, ``mse``; there the sum over pairs);
    with ``l1`` and a margin as in VideoREPA, arXiv 2505.23656 (relations within and across frames).

    Raises:
        ShapeError: The grid has no such pair: a single token, or ``across`` with a single view.
    """

    name = "relational"
    Options: ClassVar[type[Options]] = RelationalOptions
    options: RelationalOptions

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``."""
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
        in_scope = torch.ones(groups[1], groups[1], dtype=torch.bool, device=mask.device)
        if scope == "across":
            view = torch.arange(v, device=mask.device).repeat_interleave(patches)
            in_scope = view[:, None] != view
        pairs = valid[:, :, None] & valid[:, None] & in_scope.fill_diagonal_(False)
        # The sign does not matter: both distances are even.
        difference = (p @ p.transpose(1, 2) - t @ t.transpose(1, 2)).abs()
        if self.options.margin:
            difference = (difference - self.options.margin).clamp(min=0)
        distance = difference if self.options.distance == "l1" else difference.square()
        total = distance.masked_fill(~pairs, 0.0).reshape(b, -1).sum(1)
        return total / pairs.reshape(b, -1).sum(1).clamp(min=1)


class AttentionOptions(Options):
    """Options of :class:`AttentionObjective`."""

    heads: int | None = Field(default=None, ge=1, description="Number of heads, from the first; default: all of both.")


class Heads(nn.Module):
    """How queries and keys of both sides split into heads. It has no parameters.

    Args:
        student: Number of heads, and channels of each.
        teacher: The same two numbers.
        count: Number of heads that are compared, the first ones of each side.
    """

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int], count: int) -> None:
        super().__init__()
        self.student, self.teacher, self.count = student, teacher, count

    def logits(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """``(n, tokens, 2 * heads * channels)``, queries before keys, to ``(n, count, tokens, tokens)``."""
        split = precise(tokens).reshape(*tokens.shape[:2], 2, *shape)[..., : self.count, :]
        queries, keys = split.transpose(1, 3).unbind(2)
        logits: Tensor = queries @ keys.transpose(-1, -2)
        return logits


class AttentionObjective(Objective):
    """``mean_h mean_i sum_j A_hij log(A_hij / a_hij)``: how the student's attention ``a`` differs from ``A``.

    ``a`` and ``A`` are softmaxes over the valid patches ``j`` of the view of patch ``i``, of the products of scaled
    queries and keys: what a block's heads would do if the patches of that view were all there is. Head ``h`` of the
    student is compared with head ``h`` of the teacher, and ``i`` runs over the valid patches of a sample. Maps of
    queries and keys are resampled to one grid as all maps are. The logits are linear in both, so they are the teacher's
    logits, resampled bilinearly along both axes.

    It compares no features, so it has neither projector nor transforms. It trains the blocks *up to and including* the
    queries and keys of the student's block. Maps are ``(b, v, gh, gw, 2 * heads * channels)``, of either width. The
    loss is 0 at equality, and for a patch that is the only valid one of its view.

    Source: the attention term of HASTE, arXiv 2505.16792 (section on holistic alignment): cross-entropy of the two
    attentions, which differs by the teacher's entropy alone and has the same gradient.

    Raises:
        ConfigError: It is called without the split into heads, which the core passes to ``with_head``; or there are
            fewer heads than requested.
        ShapeError: There is a single patch in each view, hence nothing to attend to.
    """

    name = "attention"
    reads = "attention"
    Options: ClassVar[type[Options]] = AttentionOptions
    options: AttentionOptions

    def attention_head(self, student: tuple[int, int], teacher: tuple[int, int]) -> nn.Module:
        most = min(student[0], teacher[0])
        count = self.options.heads or most
        if count > most:
            raise ConfigError(
                f"Objective {self.name!r} has heads={count}; student and teacher have {student[0]} and {teacher[0]}.",
                f"Give heads={most}, or leave it out.",
            )
        return Heads(student, teacher, count)

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, 2 * heads * channels)`` maps to ``(b,)``; raises, because the head is missing."""
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        """``(b, v, gh, gw, 2 * heads * channels)`` maps, of either side's width, to ``(b,)``."""
        if not isinstance(head, Heads):
            raise ConfigError(f"Objective {self.name!r} needs its head.", "Pass attention_head(...) to with_head.")
        b, v, gh, gw, _ = student.shape
        if gh * gw < 2:
            raise ShapeError(f"Objective {self.name!r} finds nothing to attend to in {gh} x {gw} tokens.")
        # Keys are masked, queries are not: masked_mean drops the rows of masked queries.
        invalid = ~mask.reshape(b * v, 1, 1, gh * gw)
        sides = ((student, head.student), (teacher, head.teacher))
        logits = (head.logits(tokens.reshape(b * v, gh * gw, -1), shape) for tokens, shape in sides)
        log_a, log_target = (_exclude(each, invalid).log_softmax(-1) for each in logits)
        divergence = (log_target.exp() * (log_target - log_a)).masked_fill(invalid, 0.0).sum(-1).mean(1)
        return masked_mean(divergence.reshape(mask.shape), mask)
