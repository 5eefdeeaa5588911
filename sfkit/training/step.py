"""The alignment of one pair of feature maps, as a pure function."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfkit.config import Recompute
from sfkit.errors import GradientError, ShapeError
from sfkit.objectives.base import Objective, cosine_similarity, masked_mean
from sfkit.projectors.base import Projector
from sfkit.utils.recompute import recompute_scope, recomputed, run_recomputed, version_of
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap


@dataclass(frozen=True)
class Compared:
    """What was compared, without gradient; 0 where the mask is False.

    Attributes:
        projected: ``(b, v, gh, gw, d)`` float32.
        target: Likewise.
        mask: ``(b, v, gh, gw)`` bool.
    """

    projected: Tensor
    target: Tensor
    mask: Tensor


class Alignment(NamedTuple):
    """What aligning one batch gave. A tuple, because FSDP2 looks for tensors with gradient in those alone.

    Attributes:
        loss: ``(b,)`` with gradient; 0 for a sample without a valid token.
        cosine: ``()`` detached: mean cosine similarity over the valid tokens of the batch; NaN where there are none, or
            where no features are compared.
        valid: ``()`` detached: share of tokens that were compared.
        compared: Of a single pair: the maps themselves, if they are features.
    """

    loss: Tensor
    cosine: Tensor
    valid: Tensor
    compared: Compared | None = None


def align(
    student: FeatureMap,
    teacher: FeatureMap,
    projector: Projector,
    objective: Objective,
    *,
    recompute: Recompute = "none",
    keep_maps: bool = True,
) -> Alignment:
    """Project the student's tokens and compare them with the teacher's, in float32 with autocast off.

    Args:
        student: Visual tokens with gradient, ``(b, v, gh, gw, d_student)``.
        teacher: Features without gradient on any grid, ``(b, v, *, *, d_teacher)``.
        projector: From ``d_student`` to the width of the target, with the target's transforms, if any.
        objective: Compares them for each sample.
        recompute: What backward recomputes instead of keeping it. ``selective``: masking, norms and activations of the
            projectors that know how; about what the bare matrix products keep is left. ``full``: the projection and the
            comparison; nothing is left but the two maps. An objective that exchanges tokens with other ranks is not run
            a second time: they would wait for each other.
        keep_maps: Whether to return what was compared.

    Raises:
        ShapeError: Batches, views or widths do not fit.
        GradientError: Projector or objective changed in place what it was given.
    """
    if student.values.shape[:2] != teacher.values.shape[:2]:
        raise ShapeError(
            f"Student tokens have (batch, views) {tuple(student.values.shape[:2])}, "
            f"the teacher's features {tuple(teacher.values.shape[:2])}."
        )
    with torch.autocast(student.values.device.type, enabled=False):
        # Features that stay as they are need no copy: masked tokens are left out below.
        as_it_is = not projector.target_transforms and teacher.grid == student.grid
        target = teacher if as_it_is else prepare_target(teacher, projector, student.mask)
        _check_widths(student, target, projector)
        mask, source = student.mask & target.mask, target.values.detach()
        del target
        loss, projected, goal = _compare(student.values, source, mask, projector, objective, recompute=recompute)
    featured = objective.reads == "features"
    cosine = _mean_cosine(projected, goal, mask) if featured else loss.new_full((), torch.nan)
    compared = Compared(projected, goal, mask) if featured and keep_maps else None
    return Alignment(loss, cosine, mask.float().mean(), compared)


def _compare(
    values: Tensor, source: Tensor, mask: Tensor, projector: Projector, objective: Objective, *, recompute: Recompute
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, and without gradient what was compared."""
    # Selected, not multiplied: a NaN in a masked token must reach neither the loss nor any gradient.
    select = functools.partial(_select, None if _is_whole(mask) else mask)

    def compare(tokens: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        versions = version_of(tokens), version_of(goal)
        projected = projector(tokens, mask)
        loss = objective.with_head(projected, goal, mask, projector.objective_head)
        if (version_of(tokens), version_of(goal)) != versions:
            raise GradientError(
                f"Projector {projector.name!r} or objective {objective.name!r} changed in place what it was given; it "
                "may be the policy's own tensor, or be made again for backward.",
                "Let it work on a copy.",
            )
        return loss, projected.detach(), goal

    if recompute == "full" and not objective.has_collectives:
        # The teacher's features may be inference tensors, which autograd keeps for nobody: hence no argument.
        return run_recomputed(lambda tokens: compare(select(tokens), select(source)), values)
    if recompute == "none":
        return compare(select(values), select(source))
    with recompute_scope(), recomputed(select, values, source) as maps:
        return compare(*maps)


def _is_whole(mask: Tensor) -> bool:
    """Whether nothing is masked, where that is known at once: a GPU would have to be waited for."""
    return mask.device.type == "cpu" and bool(mask.all())


def _select(mask: Tensor | None, values: Tensor) -> Tensor:
    if mask is None:
        # Autograd would not keep a tensor of inference mode for backward.
        return values.to(torch.float32, copy=values.is_inference())
    return torch.where(mask.unsqueeze(-1), values.float(), 0.0)


@torch.no_grad()
def prepare_target(teacher: FeatureMap, projector: Projector, wanted: Tensor) -> FeatureMap:
    """From the teacher's features to the target: the projector's transforms, or resampling alone.

    Args:
        teacher: Features on any grid, ``(b, v, *, *, d_teacher)``.
        projector: Whose target it is to be.
        wanted: ``(b, v, gh, gw)`` bool, the student's tokens that may be aligned.

    Returns:
        ``(b, v, gh, gw, projector.teacher_dim)`` float32.

    Raises:
        ShapeError: The transforms do not end on the student's grid.
    """
    features, grid = FeatureMap(teacher.values.detach(), teacher.mask), (wanted.shape[2], wanted.shape[3])
    if not projector.target_transforms:
        return resample(features, grid)
    for transform in projector.target_transforms:
        features = transform(features, wanted)
    if features.grid != grid:
        raise ShapeError(
            f"After its transforms the target has a grid of {features.grid}, the student {grid}.",
            'Add the transform "resample".',
        )
    return features


def _check_widths(student: FeatureMap, target: FeatureMap, projector: Projector) -> None:
    if (student.dim, target.dim) != (projector.student_dim, projector.teacher_dim):
        raise ShapeError(
            f"The projector maps {projector.student_dim} to {projector.teacher_dim} channels, "
            f"but the student has {student.dim} and the target {target.dim}."
        )


@torch.no_grad()
def _mean_cosine(projected: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    cosine = cosine_similarity(projected, goal)
    has_any = mask.any()
    return torch.where(has_any, masked_mean(cosine[None], mask[None])[0], torch.nan)
