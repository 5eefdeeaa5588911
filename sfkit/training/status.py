"""The state of an aligned policy, as data and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sfkit.config import StudentLayer

if TYPE_CHECKING:
    from sfkit.training.step import Aligner


@dataclass(frozen=True)
class PairStatus:
    """One pair.

    Attributes:
        student_layer: As configured; the block, where attention is compared.
        site: The tap site in words.
        tap: Path of the hooked module.
        teacher: Name.
        teacher_layer: Of the teacher.
        license: Of the teacher's weights.
        objective: Name.
        weight: Within the alignment loss.
        fired: How often the tap fired in the last forward.
    """

    student_layer: StudentLayer
    site: str
    tap: str
    teacher: str
    teacher_layer: int
    license: str
    objective: str
    weight: float
    fired: int


@dataclass(frozen=True)
class Status:
    """State of a wrapped policy.

    Attributes:
        policy: Class name.
        adapter: Adapter name.
        pairs: What is aligned with what.
        objective: Names of the objectives.
        weight: Weight of the alignment loss at present, before its schedule.
        balance: The ratio of gradients that the weight keeps; None for a fixed weight.
        schedule: The schedule, in words.
        factor: By which the schedule multiplies the weight at the coming step.
        enabled: False inside ``SpatialForcing.disabled``.
        training: Whether the policy is in training mode.
        projector_parameters: Number of trainable values that are added for training.
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

    @classmethod
    def of(cls, aligner: Aligner, metrics: dict[str, float]) -> Status:
        """The state of a handle now. Reading it waits for the device."""
        weighting, schedule = aligner.weighting, aligner.weighting.schedule
        pairs = tuple(
            PairStatus(
                student_layer=pair.site.student_layer,
                site=str(pair.site),
                tap=aligner.taps.at[pair.site].path,
                teacher=pair.runner.teacher.name,
                teacher_layer=pair.teacher_layer,
                license=pair.runner.teacher.license,
                objective=pair.objective.name,
                weight=pair.weight,
                fired=aligner.taps.at[pair.site].fired,
            )
            for pair in aligner.pairs
        )
        return cls(
            policy=type(aligner.adapter.policy).__name__,
            adapter=aligner.adapter.name,
            pairs=pairs,
            objective=", ".join(dict.fromkeys(pair.objective for pair in pairs)),
            weight=float(weighting.now(aligner.device)),
            balance=None if weighting.balance is None else weighting.balance.ratio,
            schedule=schedule.describe(),
            factor=schedule.factor(aligner.step),
            enabled=aligner.enabled,
            training=aligner.training,
            projector_parameters=sum(parameter.numel() for parameter in aligner.parameters()),
            steps=aligner.steps,
            teacher_runs=sum(runner.num_forwards for runner in aligner.runners),
            metrics=metrics,
            reaches_policy=aligner.check.reaches_policy,
            projector_moved=aligner.check.projector_moved,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        idle = {
            "disabled": not self.enabled,
            "the policy is in eval mode": not self.training,
            "weight 0": not self.weight,
            "the schedule rests": not self.factor,
        }
        state = next((f"idle ({reason})" for reason, holds in idle.items() if holds), "aligning")
        lines = [f"{self.policy}, adapter {self.adapter}: {state}, {self.steps} steps so far"]
        ran = "fired {}x in the last forward" if self.steps else "not yet run"
        for pair in self.pairs:
            lines.append(
                f"  {pair.site} -> {pair.teacher} layer {pair.teacher_layer} (license {pair.license}), "
                f"weight {pair.weight:g}, tap {pair.tap} {ran.format(pair.fired)}"
            )
        kept = "" if self.balance is None else f" (balance: gradient ratio {self.balance:g})"
        size = _count(self.projector_parameters)
        lines.append(f"  objective {self.objective}, weight {self.weight:.4g}{kept}, projector of {size} extra")
        if self.schedule != "constant":
            lines.append(f"  schedule {self.schedule}: weight {self.weight * self.factor:.4g} at the coming step")
        if self.metrics:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in self.metrics.items())
            lines.append(f"  last step: {shown.replace('nan', 'none (no valid token)')}")
        known = {True: "yes", False: "NO", None: "not known yet"}
        lines.append(f"  gradient reaches the policy: {known[self.reaches_policy]}")
        lines.append(f"  optimizer trains the projector: {known[self.projector_moved]}")
        return "\n".join(lines)


def describe(aligner: Aligner) -> str:
    """The line that is logged at wrap time."""
    terms = []
    for pair in aligner.pairs:
        teacher = pair.runner.teacher
        layer = f"@{pair.teacher_layer}" if teacher.num_layers > 1 else ""
        ahead = f"+{pair.future}" if pair.future else ""
        factor = f"{pair.weight:g} × " if pair.weight != 1 else ""
        student = f"{aligner.adapter.name}@{pair.site.key}"
        terms.append(f"{factor}{pair.objective.name}({student} → {teacher.name}{layer}{ahead})")
    inner = " + ".join(terms)
    if len(terms) > 1:
        inner = f"mean({inner})" if aligner.config.pair_reduction == "mean" else f"({inner})"
    licenses = sorted({f"{runner.teacher.name}: {runner.teacher.license}" for runner in aligner.runners})
    size = _count(sum(parameter.numel() for parameter in aligner.parameters()))
    described = aligner.weighting.schedule.describe()
    schedule = "" if described == "constant" else f" × {described}"
    return (
        f"loss = action + {aligner.config.weight}{schedule} × {inner}, projector {size}, "
        f"teacher license {', '.join(licenses)}"
    )


def _count(parameters: int) -> str:
    if parameters < 1000:
        return f"{parameters} parameters"
    return f"{parameters / 1e6:.1f} M parameters" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k parameters"
