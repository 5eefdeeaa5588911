"""The monitor: measures at one training step of many, and reports at the next one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfkit.config import HealthOptions, StudentLayer
from sfkit.errors import SfkitWarning
from sfkit.health.correspondence import SHIFTS, shift_errors
from sfkit.health.directions import mean_norm, spread_and_rank, variation_over_samples
from sfkit.health.drift import drift, drift_noise, moments, sample_of
from sfkit.health.report import Health, LayerHealth, PairHealth
from sfkit.health.rules import WarningFilter, findings
from sfkit.objectives.base import masked_mean, unit
from sfkit.training.checks import find_trained_leaf
from sfkit.training.gradients import GradientSums
from sfkit.training.step import Compared
from sfkit.utils.runtime import is_distributed
from sfkit.views.types import FeatureMap

_PAIR = ("valid", "token_norm", "projected_norm", "target_norm")
_MORE = ("rank", "target_rank", "spread", "target_spread", "target_variation")
_WITNESSES = 8


@dataclass(frozen=True)
class MonitoredPair:
    """What the monitor is told of a pair: where it is, whose layer, and whether the target is of the same pictures."""

    student_layer: StudentLayer
    teacher: str
    teacher_layer: int
    present: bool = True


class Monitor:
    """Measures, reports and warns.

    A measurement is made while the alignment is computed, on tensors that are there anyway; the gradients come from the
    hooks of :class:`~sfkit.training.gradients.GradientMeter`. Everything stays on the device until the next training
    step, which reads it in one go: that, and what a measurement itself needs to know on the host, are the only places
    where the device is waited for.

    Args:
        options: How often, and when to warn.
        pairs: What is aligned with what.
        policy: Whose parameters bear witness that an optimizer is at work.
        projectors: Whose movement is watched.
    """

    def __init__(
        self, options: HealthOptions, pairs: Sequence[MonitoredPair], policy: nn.Module, projectors: nn.Module
    ) -> None:
        self.options = options
        self.pairs = tuple(pairs)
        self.warner = WarningFilter(options.patience)
        #: Where warnings go; a trainer with a log of its own puts them there.
        self.tell: Callable[[str], None] = _warn
        self.last = Health(None, options.every)
        self.reaches_policy: bool | None = None
        self._policy, self._projectors = policy, projectors
        self._next = 0
        self._flags: tuple[bool, ...] | None = None
        self._pending: dict[str, Tensor] = {}
        self._views: tuple[str, ...] = ()
        self._reference: dict[str, Tensor] = {}
        self._before: tuple[Tensor, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether to measure at this training step: the same on all ranks."""
        return bool(self.options.every) and step >= self._next

    def begin(self, step: int) -> None:
        """A step at which it measures begins, on this rank or on others."""
        self._next = step + self.options.every
        self._pending = {}

    # ------------------------------------------------------------------------------------------------ measuring

    def look(
        self,
        students: Mapping[StudentLayer, FeatureMap],
        compared: Sequence[Compared],
        views: Sequence[str],
        reached: bool | None = None,
    ) -> None:
        """Measure everything but the gradients.

        Args:
            students: Visual tokens with gradient, by layer.
            compared: Of each pair.
            views: Names, in the order of the maps.
            reached: Whether the check of the first batch has found that gradient reaches the policy.
        """
        self._find_reach(students, reached)
        with torch.no_grad():
            self._views = tuple(views)
            found: dict[str, Tensor] = {}
            for layer, student in students.items():
                found.update(self._layer_figures(layer, student))
            first = {pair.teacher: i for i, pair in reversed(list(enumerate(self.pairs))) if pair.present}
            for index, (pair, maps) in enumerate(zip(self.pairs, compared, strict=True)):
                tokens = torch.where(maps.mask.unsqueeze(-1), students[pair.student_layer].values.detach().float(), 0.0)
                found.update({f"{index}.{k}": v for k, v in _pair_figures(tokens, maps).items()})
                if first.get(pair.teacher) == index:
                    found[f"{index}.shifts"] = shift_errors(tokens, maps.target, maps.mask)
            found.update(self._movements())
            self._pending = {key: value.float().reshape(-1) for key, value in found.items()}

    def _layer_figures(self, layer: StudentLayer, student: FeatureMap) -> dict[str, Tensor]:
        tokens, key = student.values.detach(), f"tokens.{layer}"
        now = moments(tokens, student.mask)
        known = self._reference.get(key)
        if known is None or known.shape != now.shape or bool(known.isnan().any()):
            self._reference[key] = known = now
        known = known.to(now.device)
        return {f"drift.{layer}": drift(now, known), f"noise.{layer}": drift_noise(tokens, student.mask, known)}

    def _movements(self) -> dict[str, Tensor]:
        """How the projector has moved since the run began, and whether it and the policy have since the last time."""
        projector = sample_of(self._projectors.parameters())
        own = {id(parameter) for parameter in self._projectors.parameters()}
        others = (p for p in self._policy.parameters() if p.requires_grad and id(p) not in own)
        witness = sample_of([p for p, _ in zip(others, range(_WITNESSES), strict=False)])
        first = self._reference.get("projector")
        if first is None or first.shape != projector.shape:
            self._reference["projector"] = first = projector
        first = first.to(projector.device)
        found = {"movement": (projector - first).norm() / first.norm().clamp(min=1e-12)}
        now, before = (projector, witness), self._before
        if before is not None and len(projector) and [v.shape for v in now] == [v.shape for v in before]:
            moved = [(value - was).abs().sum() > 0 for value, was in zip(now, before, strict=True)]
            found["idle"] = ~moved[0] & moved[1].to(moved[0].device)
        self._before = now
        return found

    def _find_reach(self, students: Mapping[StudentLayer, FeatureMap], reached: bool | None) -> None:
        """Whether gradient reaches the policy; looked for again where something was frozen or unfrozen meanwhile."""
        flags = tuple(parameter.requires_grad for parameter in self._policy.parameters())
        if flags == self._flags or not any(bool(student.mask.any()) for student in students.values()):
            return
        first, self._flags = self._flags is None, flags
        if first and reached:
            self.reaches_policy = True
            return
        try:
            self.reaches_policy = all(find_trained_leaf(student) is not None for student in students.values())
        except RuntimeError:  # graphs that cannot be run back twice
            self.reaches_policy = None

    # ------------------------------------------------------------------------------------------------ reporting

    def settle(self, step: int, sums: GradientSums) -> None:
        """Take in the gradients of a measured step, and warn of what has lasted; only the first rank warns."""
        if not self._pending:
            return  # this rank sat out
        self.last, idle = self._read(step, sums)
        self._pending = {}
        found = list(findings(self.last, self.options, idle_projector=idle))
        due = self.warner.hear(step, found)
        self.last = replace(self.last, warnings=tuple(self.warner.given.values()))
        if is_distributed() and torch.distributed.get_rank():
            return
        for message in due:
            self.tell(f"sfkit: {message}")

    def peek(self, step: int, sums: GradientSums) -> Health:
        """The measurement that no step has settled yet, if there is one, else the last."""
        if not self._pending:
            return replace(self.last, warnings=tuple(self.warner.given.values()))
        return replace(self._read(step, sums)[0], warnings=tuple(self.warner.given.values()))

    def _read(self, step: int, sums: GradientSums) -> tuple[Health, bool]:
        every = [GradientSums(*(part[i : i + 1] for part in vars(sums).values())) for i in range(len(sums.action))]
        layers = [key.partition(".")[2] for key in self._pending if key.startswith("drift.")]
        tensors = {**self._pending, "ratio": sums.ratio.reshape(1), "cosine": sums.cosine.reshape(1)}
        for name, one in zip(layers, every, strict=True):
            tensors |= {f"ratio.{name}": one.ratio.reshape(1), f"cosine.{name}": one.cosine.reshape(1)}
        device = sums.action.device
        flat = torch.cat([value.to(device) for value in tensors.values()]).tolist()
        figures: dict[str, list[float]] = {}
        for key, value in tensors.items():
            figures[key], flat = flat[: len(value)], flat[len(value) :]
        by_layer: dict[str, StudentLayer] = {str(pair.student_layer): pair.student_layer for pair in self.pairs}
        health = Health(
            step=step,
            every=self.options.every,
            ratio=figures["ratio"][0],
            cosine=figures["cosine"][0],
            layers=tuple(
                LayerHealth(
                    by_layer.get(d, d), *(figures[f"{key}.{d}"][0] for key in ("ratio", "cosine", "drift", "noise"))
                )
                for d in layers
            ),
            pairs=tuple(self._pair(index, pair, figures) for index, pair in enumerate(self.pairs)),
            projector_movement=figures["movement"][0],
            reaches_policy=self.reaches_policy,
        )
        return health, bool(figures.get("idle", [0.0])[0])

    def _pair(self, index: int, pair: MonitoredPair, figures: Mapping[str, list[float]]) -> PairHealth:
        shifts = figures.get(f"{index}.shifts", [float("nan")] * len(SHIFTS))
        best = min(range(1, len(SHIFTS)), key=lambda i: shifts[i])
        known = shifts[0] == shifts[0]
        return PairHealth(
            student_layer=pair.student_layer,
            teacher=pair.teacher,
            teacher_layer=pair.teacher_layer,
            cosine=dict(zip(self._views, figures[f"{index}.views"], strict=False)),
            **{name: figures[f"{index}.{name}"][0] for name in (*_PAIR, *_MORE)},
            aligned_error=shifts[0],
            shifted_error=shifts[best] if known else float("nan"),
            shift=SHIFTS[best] if known else None,
        )

    # --------------------------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Tensor]:
        """What the figures refer to: tokens and projector as the run began."""
        return {key: value.clone() for key, value in self._reference.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        self._reference = {key: value.clone() for key, value in state.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Monitor:
        import copy

        fresh = object.__new__(Monitor)
        memo[id(self)] = fresh
        # What is pending belongs to a step of the original.
        fresh.__dict__.update(copy.deepcopy({**self.__dict__, "_pending": {}}, memo))
        return fresh


def _warn(message: str) -> None:
    warnings.warn(message, SfkitWarning, stacklevel=6)


def _pair_figures(tokens: Tensor, maps: Compared) -> dict[str, Tensor]:
    mask = maps.mask
    agreement = (unit(maps.projected) * unit(maps.target)).sum(-1)
    by_view = masked_mean(agreement.transpose(0, 1), mask.transpose(0, 1))
    spread, rank = spread_and_rank(maps.projected, mask)
    target_spread, target_rank = spread_and_rank(maps.target, mask)
    return {
        "views": torch.where(mask.transpose(0, 1).flatten(1).any(1), by_view, torch.nan),
        "valid": mask.float().mean(),
        "token_norm": mean_norm(tokens, mask),
        "projected_norm": mean_norm(maps.projected, mask),
        "target_norm": mean_norm(maps.target, mask),
        "rank": rank,
        "target_rank": target_rank,
        "spread": spread,
        "target_spread": target_spread,
        "target_variation": variation_over_samples(maps.target, mask),
    }
