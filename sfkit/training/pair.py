"""One alignment: the tokens of a tap site with the features of a teacher layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfkit.config import ComponentSpec, Recompute
from sfkit.errors import GradientError, ShapeError
from sfkit.objectives.base import Objective, cosine_similarity, masked_mean
from sfkit.projectors.base import Projector
from sfkit.training.contract import broken, form
from sfkit.training.taps import Residual, TapSite
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.transforms.base import Transform
from sfkit.utils.recompute import recompute_scope, recomputed, run_recomputed, version_of
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap

#: For a pair that is used alone.
_ANYWHERE = Residual(0)


@dataclass(frozen=True)
class Compared:
    """What was compared, without gradient; 0 where the mask is False.

    Attributes:
        projected: ``(b, v, gh, gw, d)`` float32.
        target: ``(b, v, gh, gw, d)`` float32.
        mask: ``(b, v, gh, gw)`` bool.
    """

    projected: Tensor
    target: Tensor
    mask: Tensor


class Alignment(NamedTuple):
    """The result of one batch. A tuple, because FSDP2 looks for tensors with gradient in those alone.

    Attributes:
        loss: ``(b,)`` with gradient; 0 for a sample without a valid token.
        cosine: ``()`` detached: mean cosine similarity over the valid tokens of the batch; NaN where there are none, or
            where no features are compared.
        valid: ``()`` detached: share of tokens that were compared.
        compared: Of a single pair, if it was requested: the maps themselves.
    """

    loss: Tensor
    cosine: Tensor
    valid: Tensor
    compared: Compared | None = None


class AlignmentPair(nn.Module):
    """Projects the student's tokens and compares them with the teacher's, in float32 with autocast off.

    Args:
        projector: From student width to target width; None where attention is compared as it is.
        objective: Compares the maps of each sample.
        transforms: From the teacher's features to the target, in order. Without any, features are resampled.
        head: What the objective trains for this pair, see :meth:`sfkit.Objective.head`.
        site: Where the student is read.
        runner: Runs the teacher.
        teacher_layer: Layer of the teacher; its block, where attention is compared.
        weight: Of this pair within the alignment loss.
        future: How many steps ahead the teacher's frame is.
        recompute: What backward recomputes instead of keeping it. ``selective``: masking, norms and activations of the
            projectors that know how; about what the bare matrix products keep is left. ``full``: the projection and the
            comparison; nothing is left but the two maps. An objective with collectives is never run a second time: the
            ranks would wait for each other.
    """

    def __init__(
        self,
        projector: Projector | None,
        objective: Objective,
        *,
        transforms: Sequence[Transform] = (),
        head: nn.Module | None = None,
        site: TapSite = _ANYWHERE,
        runner: TeacherRunner | None = None,
        teacher_layer: int = 1,
        weight: float = 1.0,
        future: int = 0,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.transforms: Any = nn.ModuleList(transforms)
        self.objective = objective
        #: Whether queries and keys are compared, and no features.
        self.reads_attention = objective.reads == "attention"
        self.site, self.teacher_layer = site, teacher_layer
        self.runner: Any = runner
        self.weight, self.future = weight, future
        self.recompute: Recompute = recompute
        self.connect(projector)
        self.head = head

    def connect(self, projector: Projector | None, shared: tuple[int, int] | None = None) -> None:
        """Set the projector.

        Args:
            projector: From student width to target width; None where attention is compared as it is.
            shared: Where several pairs share it: the number of this pair, and how many there are.
        """
        self.shared = shared
        # A shared projector is a child of the first pair alone: once in the optimizer, in DDP and in checkpoints.
        self._projector = (projector,)
        self.projector = projector if shared is None or shared[0] == 0 else None

    @property
    def target_dim(self) -> int:
        """Channels of the target."""
        dim: int = self.transforms[-1].out_dim if self.transforms else self.runner.teacher.dim(self.teacher_layer)
        return dim

    def config(self, own: Sequence[str] = ()) -> dict[str, Any]:
        """The fields of its :class:`~sfkit.config.PairConfig`.

        Args:
            own: Which of objective, projector and transforms are the pair's own, and not those of the whole run.
        """
        return {
            "student_layer": self.site.student_layer,
            "teacher": self.runner.teacher.spec,
            "teacher_layer": self.teacher_layer,
            "weight": self.weight,
            "future": self.future,
            "objective": self.objective.spec if "objective" in own else None,
            "projector": self.projector_spec if "projector" in own else None,
            "transforms": self.transform_specs if "transforms" in own else None,
        }

    @property
    def shared_projector(self) -> Projector | None:
        """The projector, which another pair may own."""
        return self._projector[0]

    @property
    def projector_spec(self) -> ComponentSpec | None:
        """Name and options of the projector."""
        return None if self.shared_projector is None else self.shared_projector.spec

    @property
    def transform_specs(self) -> tuple[ComponentSpec, ...]:
        """Names and options of the transforms."""
        return tuple(transform.spec for transform in self.transforms)

    def project(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d_student)`` tokens to ``(b, v, gh, gw, d_target)``; the mask is ``(b, v, gh, gw)``."""
        projector = self.shared_projector
        if projector is None:
            return tokens
        if self.shared is not None:
            return projector.forward_shared(tokens, mask, *self.shared)
        projected: Tensor = projector(tokens, mask)
        return projected

    def forward(self, student: FeatureMap, teacher: FeatureMap, keep_maps: bool = False) -> Alignment:
        """Align one batch.

        Args:
            student: Visual tokens with gradient, ``(b, v, gh, gw, d_student)``.
            teacher: Features without gradient on any grid, ``(b, v, *, *, d_teacher)``.
            keep_maps: Whether to return what was compared.

        Raises:
            ShapeError: Batches, views or widths do not fit.
            ComponentError: A transform, the projector or the objective returned what its interface does not allow.
            GradientError: Projector or objective changed its input in place.
        """
        if student.values.shape[:2] != teacher.values.shape[:2]:
            raise ShapeError(
                f"Student tokens have (batch, views) {tuple(student.values.shape[:2])}, "
                f"the teacher's features {tuple(teacher.values.shape[:2])}."
            )
        with torch.autocast(student.values.device.type, enabled=False):
            # Features that stay as they are need no copy: masked tokens are left out below.
            unchanged = not self.transforms and teacher.values.shape[2:4] == student.values.shape[2:4]
            target = teacher if unchanged else self.target(teacher, student.mask)
            self._check_widths(student.values.shape[-1], target.values.shape[-1])
            mask, source = student.mask & target.mask, target.values.detach()
            del target
            loss, cosine, projected, goal = self._compare(student.values, source, mask)
        cosine = loss.new_full((), torch.nan) if self.reads_attention else _mean_over_batch(cosine, mask)
        return Alignment(loss, cosine, mask.float().mean(), Compared(projected, goal, mask) if keep_maps else None)

    @torch.no_grad()
    def target(self, teacher: FeatureMap, requested: Tensor) -> FeatureMap:
        """From the teacher's features to the target: the transforms, or resampling alone.

        Args:
            teacher: Features on any grid, ``(b, v, *, *, d_teacher)``.
            requested: ``(b, v, gh, gw)`` bool, the student's tokens that may be aligned.

        Returns:
            ``(b, v, gh, gw, d_target)`` float32.

        Raises:
            ShapeError: The transforms do not end on the student's grid.
        """
        features, grid = FeatureMap(teacher.values.detach(), teacher.mask), (requested.shape[2], requested.shape[3])
        if not self.transforms:
            return resample(features, grid)
        for transform in self.transforms:
            shape = (*features.values.shape[:2], transform.out_dim)
            features = transform(features, requested)
            found = features.values if isinstance(features, FeatureMap) else features
            if not isinstance(found, Tensor) or (*found.shape[:2], found.shape[-1]) != shape:
                must = f"return a FeatureMap of shape ({shape[0]}, {shape[1]}, *, *, {shape[2]}), as out_dim says"
                raise broken("transform", transform, f"returned {form(found)}", must)
        if features.grid != grid:
            raise ShapeError(
                f"After its transforms the target has a grid of {features.grid}, the student {grid}.",
                'Add the transform "resample".',
            )
        return features

    def _check_widths(self, student: int, target: int) -> None:
        projector = self.shared_projector
        if projector is not None and (student, target) != (projector.student_dim, projector.teacher_dim):
            raise ShapeError(
                f"The projector maps {projector.student_dim} to {projector.teacher_dim} channels, "
                f"but the student has {student} and the target {target}."
            )

    def _compare(self, values: Tensor, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss ``(b,)``; without gradient, cosine ``(b, v, gh, gw)`` and both maps ``(b, v, gh, gw, d)``."""
        # Selected, not multiplied: a NaN in a masked token must reach neither the loss nor any gradient.
        select = functools.partial(_select, None if _is_whole(mask) else mask)

        def compare(tokens: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Tokens and target, ``(b, v, gh, gw, d)`` each."""
            versions = version_of(tokens), version_of(goal)
            projected = self.project(tokens, mask)
            projector = self.shared_projector
            shape = (*tokens.shape[:-1], goal.shape[-1])
            if projector is not None and getattr(projected, "shape", None) != shape:
                must = f"return a tensor of shape {shape}, as its teacher_dim says"
                raise broken("projector", projector, f"returned {form(projected)}", must)
            loss, cosine = self._objective(projected, goal, mask)
            if versions != (version_of(tokens), version_of(goal)):
                raise GradientError(
                    f"Projector {projector and projector.name!r} or objective {self.objective.name!r} changed its "
                    "input in place, which may be the policy's own tensor, or be recomputed for backward.",
                    "Let it work on a copy.",
                )
            return loss, cosine, projected.detach(), goal

        if self.recompute == "full" and not self.objective.has_collectives:
            # The teacher's features may be inference tensors, which autograd keeps for nobody: hence no argument.
            return run_recomputed(lambda tokens: compare(select(tokens), select(source)), values)
        if self.recompute == "none":
            return compare(select(values), select(source))
        with recompute_scope(), recomputed(select, values, source) as maps:
            return compare(*maps)

    def _objective(self, projected: Tensor, goal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(b,)``, and cosine ``(b, v, gh, gw)`` of the maps ``(b, v, gh, gw, d)``, which is computed once."""
        from_cosine = vars(type(self.objective)).get("from_cosine")  # a subclass may compute something else
        if from_cosine is not None:
            cosine = cosine_similarity(projected, goal)
            loss = from_cosine(self.objective, cosine, mask)
        else:
            loss = self.objective.with_head(projected, goal, mask, self.head)
        if getattr(loss, "shape", None) != mask.shape[:1]:
            must = f"return a tensor of shape ({mask.shape[0]},), one loss for each sample"
            raise broken("objective", self.objective, f"returned {form(loss)}", must)
        if from_cosine is not None:
            return loss, cosine.detach()
        if self.reads_attention:
            return loss, loss.detach()
        with torch.no_grad():
            return loss, cosine_similarity(projected, goal)


def _is_whole(mask: Tensor) -> bool:
    """Whether a mask ``(b, v, gh, gw)`` is True everywhere, on the CPU: a GPU would have to be waited for."""
    return mask.device.type == "cpu" and bool(mask.all())


def _select(mask: Tensor | None, values: Tensor) -> Tensor:
    """``(b, v, gh, gw, d)`` values in float32, 0 where the mask ``(b, v, gh, gw)`` is False."""
    if mask is None:
        # Autograd would not keep a tensor of inference mode for backward.
        return values.to(torch.float32, copy=values.is_inference())
    return torch.where(mask.unsqueeze(-1), values.float(), 0.0)


@torch.no_grad()
def _mean_over_batch(cosine: Tensor, mask: Tensor) -> Tensor:
    """``()``: mean of ``(b, v, gh, gw)`` values over all valid tokens; NaN where there are none."""
    return torch.where(mask.any(), masked_mean(cosine[None], mask[None])[0], torch.nan)
