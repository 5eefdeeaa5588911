"""What ``status()`` tells, as data and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sfkit.config import StudentLayer
from sfkit.training.taps import student_layer_name


@dataclass(frozen=True)
class PairStatus:
    """One alignment of the step."""

    student_layer: StudentLayer
    tap: str
    teacher: str
    teacher_layer: int
    license: str
    weight: float
    fired: int


@dataclass(frozen=True)
class Status:
    """State of a wrapped policy.

    Attributes:
        policy: Class name.
        adapter: Adapter name.
        pairs: What is aligned with what, and how often each tap fired in the last forward.
        objective: Objective name.
        weight: Weight of the alignment loss at present, before its schedule.
        balance: The ratio of gradients that the weight keeps; None for a fixed weight.
        schedule: The schedule, in words.
        factor: By which the schedule multiplies the weight at the coming step.
        enabled: False inside ``SpatialForcing.disabled``.
        training: Whether the policy is in training mode.
        projector_parameters: Trainable values that are added for training.
        steps: Training calls of ``forward`` so far, aligned or not.
        teacher_runs: How often teachers ran.
        metrics: ``action_loss``, ``sf_loss``, ``sf_cosine``, ``sf_effective_weight``,
            ``sf_valid_token_fraction`` of the last aligned step.
        reaches_policy: Whether gradient reaches trainable parameters of the policy; None: not known yet.
        projector_moved: Whether the optimizer trains the projector; None: not known yet.
    """

    policy: str
    adapter: str
    pairs: tuple[PairStatus, ...]
    objective: str
    weight: float
    balance: float | None
    schedule: str
    factor: float
    enabled: bool
    training: bool
    projector_parameters: int
    steps: int
    teacher_runs: int
    metrics: dict[str, float]
    reaches_policy: bool | None
    projector_moved: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        state = "aligning" if self.enabled and self.training and self.weight * self.factor else "idle"
        why = "" if state == "aligning" else f" ({self._idle_reason()})"
        lines = [f"{self.policy}, adapter {self.adapter}: {state}{why}, {self.steps} steps so far"]
        for pair in self.pairs:
            lines.append(
                f"  {student_layer_name(pair.student_layer)} -> {pair.teacher} layer {pair.teacher_layer} "
                f"(license {pair.license}), weight {pair.weight:g}, tap {pair.tap} "
                f"fired {pair.fired}x in the last forward"
            )
        kept = "" if self.balance is None else f" (balance: gradient ratio {self.balance:g})"
        size = _count(self.projector_parameters)
        lines.append(f"  objective {self.objective}, weight {self.weight:.4g}{kept}, {size} extra")
        if self.schedule != "constant":
            lines.append(f"  schedule {self.schedule}: weight {self.weight * self.factor:.4g} at the coming step")
        if self.metrics:
            shown = ", ".join(f"{key} {_number(value)}" for key, value in self.metrics.items())
            lines.append(f"  last step: {shown}")
        lines.append(f"  gradient reaches the policy: {_known(self.reaches_policy)}")
        lines.append(f"  optimizer trains the projector: {_known(self.projector_moved)}")
        return "\n".join(lines)

    def _idle_reason(self) -> str:
        if not self.enabled:
            return "disabled"
        if not self.training:
            return "the policy is in eval mode"
        return "the schedule rests" if self.weight else "weight 0"


def _known(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not known yet"}[value]


def _number(value: float) -> str:
    return "none (no valid token)" if math.isnan(value) else f"{value:.4g}"


def _count(parameters: int) -> str:
    millions = parameters / 1e6
    return f"projector of {millions:.1f} M parameters" if millions >= 0.1 else f"projector of {parameters} parameters"
