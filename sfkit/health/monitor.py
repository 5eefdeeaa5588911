"""The monitor: measures at one training step of many, and reports at the next one."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from sfkit.config import HealthOptions
from sfkit.errors import SfkitWarning
from sfkit.health.figures import SHIFTS, drift, drift_noise, moments, pair_figures, sample_of, shift_errors
from sfkit.health.report import Health, LayerHealth, PairHealth
from sfkit.health.rules import WarningFilter, findings
from sfkit.training.checks import find_trained_leaf
from sfkit.training.gradients import GradientSums
from sfkit.training.observer import StepObserver
from sfkit.training.pair import Alignment, AlignmentPair
from sfkit.training.step import Aligner
from sfkit.training.taps import TapSite
from sfkit.utils.runtime import is_distributed
from sfkit.views.types import FeatureMap, Views

#: So many parameters of the policy show whether an optimizer moves it.
_WITNESSES = 8
_LAYER = ("ratio", "cosine", "drift", "noise")


class Monitor(StepObserver):
    """Measures, reports and warns.

    A measurement is made while the alignment is computed, on tensors that are there anyway; the gradients come from the
    hooks of :class:`~sfkit.training.gradients.GradientMeter`. Everything stays on the device until the next training
    step, which reads it in one go: that, and what a measurement itself needs to know on the host, are the only places
    where the device is waited for.

    Args:
        options: How often, and when to warn.
        aligner: Whose pairs and policy are watched.

    Attributes:
        warn: Where warnings go; a trainer with a log of its own puts them there.
        last: The last measurement.
    """

    reads_gradients: ClassVar[bool] = True
    reads_maps: ClassVar[bool] = True
    key: ClassVar[str] = "health"

    def __init__(self, options: HealthOptions, aligner: Aligner) -> None:
        self.options, self.aligner = options, aligner
        self.filter = WarningFilter(options.patience)
        self.warn: Callable[[str], None] = _warn
        self.last = Health(None, options.every)
        self.reaches_policy: bool | None = None
        self.next_step = 0 if options.every else math.inf
        self._flags: tuple[bool, ...] | None = None
        self._pending: dict[str, Tensor] = {}
        self._views: tuple[str, ...] = ()
        self._reference: dict[str, Tensor] = {}
        self._before: tuple[Tensor, Tensor] | None = None

    @property
    def pairs(self) -> list[AlignmentPair]:
        """Those that compare features."""
        return [pair for pair in self.aligner.pairs if not pair.reads_attention]

    def begin(self, step: int) -> None:
        self.next_step = step + self.options.every
        self._pending = {}

    # ------------------------------------------------------------------------------------------------ measuring

    def aligned(self, views: Views, students: Mapping[TapSite, FeatureMap], results: Sequence[Alignment]) -> None:
        """Measure everything but the gradients."""
        self._find_reach(students)
        with torch.no_grad():
            self._views = tuple(views.names)
            found = self._movements()
            for site, student in students.items():
                tokens, key = student.values.detach(), site.key
                now = moments(tokens, student.mask)
                first = self._first(f"tokens.{key}", now)
                found |= {f"drift.{key}": drift(now, first), f"noise.{key}": drift_noise(tokens, student.mask, first)}
            both = zip(self.aligner.pairs, results, strict=True)
            compared = [result.compared for pair, result in both if result.compared and not pair.reads_attention]
            measured: set[str] = set()
            for index, (pair, maps) in enumerate(zip(self.pairs, compared, strict=True)):
                tokens = torch.where(maps.mask.unsqueeze(-1), students[pair.site].values.detach().float(), 0.0)
                figures = pair_figures(tokens, maps)
                teacher = pair.runner.teacher.name
                if not pair.future and teacher not in measured:
                    measured.add(teacher)
                    figures["shifts"] = shift_errors(tokens, maps.target, maps.mask)
                found.update({f"{index}.{key}": value for key, value in figures.items()})
            self._pending = {key: value.float().reshape(-1) for key, value in found.items()}

    def _first(self, key: str, now: Tensor) -> Tensor:
        """The value of ``now``, ``(*)``, as the run began; ``now`` itself if it was not known then."""
        first = self._reference.get(key)
        if first is None or first.shape != now.shape or bool(first.isnan().any()):
            self._reference[key] = first = now
        return first.to(now.device)

    def _movements(self) -> dict[str, Tensor]:
        """How the projector has moved since the run began, and whether it and the policy have since the last time."""
        projector = sample_of(self.aligner.parameters())
        own = {id(parameter) for parameter in self.aligner.parameters()}
        others = (p for p in self.aligner.adapter.policy.parameters() if p.requires_grad and id(p) not in own)
        witness = sample_of(itertools.islice(others, _WITNESSES))
        first = self._first("projector", projector)
        found = {"movement": (projector - first).norm() / first.norm().clamp(min=1e-12)}
        now, before = (projector, witness), self._before
        if before is not None and len(projector) and [v.shape for v in now] == [v.shape for v in before]:
            moved = [(value - was).abs().sum() > 0 for value, was in zip(now, before, strict=True)]
            found["idle"] = ~moved[0] & moved[1].to(moved[0].device)
        self._before = now
        return found

    def _find_reach(self, students: Mapping[TapSite, FeatureMap]) -> None:
        """Whether gradient reaches the policy; checked again where something was frozen or unfrozen meanwhile."""
        flags = tuple(parameter.requires_grad for parameter in self.aligner.adapter.policy.parameters())
        if flags == self._flags or not any(bool(student.mask.any()) for student in students.values()):
            return
        first, self._flags = self._flags is None, flags
        if first and self.aligner.check.reaches_policy:
            self.reaches_policy = True
            return
        try:
            self.reaches_policy = all(find_trained_leaf(student) is not None for student in students.values())
        except RuntimeError:  # graphs that cannot be run back twice
            self.reaches_policy = None

    # ------------------------------------------------------------------------------------------------ reporting

    def gradients(self, step: int, sums: GradientSums) -> None:
        """Finish the measurement, and warn of what has lasted; only the first rank warns."""
        if not self._pending:
            return  # this rank did not align
        self.last, idle = self._read(step, sums)
        self._pending = {}
        new = self.filter.update(step, list(findings(self.last, self.options, idle_projector=idle)))
        if is_distributed() and torch.distributed.get_rank():
            return
        for message in new:
            self.warn(f"sfkit: {message}")

    def latest(self) -> Health:
        """The last measurement, finished or not; with several processes, the last finished one."""
        weighting, found = self.aligner.weighting, self.last
        if self._pending and weighting.plan.measures and not is_distributed():
            table = weighting.meter.table
            empty = torch.zeros(weighting.meter.sites, 4, device=self.aligner.device)
            found, _ = self._read(weighting.plan.step, GradientSums.of(empty if table is None else table))
        return replace(found, warnings=tuple(self.filter.given.values()))

    def _read(self, step: int, sums: GradientSums) -> tuple[Health, bool]:
        """Everything on the host, in one transfer; and whether the optimizer passes the projector by."""
        sites = {key.partition(".")[2]: None for key in self._pending if key.startswith("drift.")}
        tensors = {**self._pending, "ratio": sums.ratio.reshape(1), "cosine": sums.cosine.reshape(1)}
        for index, name in enumerate(sites):
            one = GradientSums(*(part[index : index + 1] for part in vars(sums).values()))
            tensors |= {f"ratio.{name}": one.ratio.reshape(1), f"cosine.{name}": one.cosine.reshape(1)}
        values = iter(torch.cat([value.to(sums.action.device) for value in tensors.values()]).tolist())
        figures = {key: list(itertools.islice(values, len(value))) for key, value in tensors.items()}
        layers = {pair.site.key: pair.site.student_layer for pair in self.pairs}
        health = Health(
            step=step,
            every=self.options.every,
            ratio=figures["ratio"][0],
            cosine=figures["cosine"][0],
            layers=tuple(
                LayerHealth(layers.get(name, name), *(figures[f"{key}.{name}"][0] for key in _LAYER)) for name in sites
            ),
            pairs=tuple(self._pair(index, pair, figures) for index, pair in enumerate(self.pairs)),
            projector_movement=figures["movement"][0],
            reaches_policy=self.reaches_policy,
        )
        return health, bool(figures.get("idle", [0.0])[0])

    def _pair(self, index: int, pair: AlignmentPair, figures: Mapping[str, list[float]]) -> PairHealth:
        own = {key.partition(".")[2]: value for key, value in figures.items() if key.startswith(f"{index}.")}
        views, shifts = own.pop("views"), own.pop("shifts", [math.nan] * len(SHIFTS))
        best = min(range(1, len(SHIFTS)), key=lambda i: shifts[i])
        known = not math.isnan(shifts[0])
        return PairHealth(
            student_layer=pair.site.student_layer,
            teacher=pair.runner.teacher.name,
            teacher_layer=pair.teacher_layer,
            cosine=dict(zip(self._views, views, strict=False)),
            aligned_error=shifts[0],
            shifted_error=shifts[best] if known else math.nan,
            shift=SHIFTS[best] if known else None,
            **{name: value[0] for name, value in own.items()},
        )

    # --------------------------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Tensor]:
        """The references of the figures: tokens and projector as the run began."""
        return {key: value.clone() for key, value in self._reference.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._reference = {key: value.clone() for key, value in state.items()}

    def __getstate__(self) -> dict[str, object]:
        # What is pending belongs to a step of the original.
        return {**self.__dict__, "_pending": {}}


def _warn(message: str) -> None:
    warnings.warn(message, SfkitWarning, stacklevel=6)
