"""When to warn, in plain words and with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sfkit.config import HealthOptions
from sfkit.health.report import Health, PairHealth

_SAME, _UNRELATED = 1e-6, 0.98


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong at one measurement.

    Attributes:
        kind: The rule, and what it is about: a finding lasts as long as this comes back.
        message: What is wrong.
        remedy: What to do.
        at_once: Whether one measurement is enough.
    """

    kind: str
    message: str
    remedy: str
    at_once: bool = False


def findings(health: Health, limits: HealthOptions, *, idle_projector: bool) -> Iterator[Finding]:
    """Everything that one measurement shows.

    Args:
        health: The measurement.
        limits: Thresholds.
        idle_projector: The optimizer has moved the policy since the last measurement, and not the projector.
    """
    yield from _gradients(health, limits)
    if idle_projector:
        yield Finding(
            "unused",
            "The optimizer moves the policy and not the projector, so the policy is aligned with a random head.",
            "Build the optimizer after the wrap, from parameters that include policy.spatial_forcing, and look at its "
            "learning rate for them.",
        )
    known = [pair for pair in health.pairs if pair.mean_cosine > limits.max_cosine]
    if known and len(known) == len(health.pairs):
        yield Finding(
            "saturated",
            f"The projected tokens agree with the target almost fully (cosine above {limits.max_cosine:g}): alignment "
            "has little left to teach.",
            'The teacher can be stopped: resume with schedule="stop:N", or choose a richer target.',
        )
    for pair in health.pairs:
        for rule in (_constant, _collapsed, _shifted):
            found = rule(pair, limits)
            if found is not None:
                yield found


def _gradients(health: Health, limits: HealthOptions) -> Iterator[Finding]:
    if health.reaches_policy is False:
        yield Finding(
            "unreached",
            "The alignment gradient reaches no trainable parameter of the policy: only the projector learns.",
            "Unfreeze what lies before the tapped layer, put LoRA on it, or tap after trainable layers.",
            at_once=True,
        )
    if health.ratio > limits.max_grad_ratio:
        yield Finding(
            "dominates",
            f"The alignment gradient dominates: it is {health.ratio:.3g} times the action gradient at the tapped "
            "tokens.",
            f'Lower the weight (about {0.3 / health.ratio:.2g} of the present one), or use weight="balance:0.1".',
        )
    if health.cosine < limits.conflict:
        yield Finding(
            "conflict",
            f"The alignment gradient works against the action gradient (cosine {health.cosine:.2f}).",
            'Lower the weight, align an earlier student layer, or end the alignment: schedule="conflict", or "stop:N".',
        )


def _constant(pair: PairHealth, limits: HealthOptions) -> Finding | None:
    if pair.target_spread < _SAME:
        what = "all its tokens point the same way"
    elif pair.target_variation < _SAME:
        what = "it is the same for every image"
    else:
        return None
    return Finding(
        f"constant {pair.name}",
        f"The target of {pair.name} is constant: {what}, so it teaches nothing.",
        "Check the teacher's input (images, depth, their range), its layer and its transforms.",
    )


def _collapsed(pair: PairHealth, limits: HealthOptions) -> Finding | None:
    if pair.target_spread < _SAME:
        return None
    thin = pair.rank < limits.collapse * pair.target_rank
    narrow = pair.spread < limits.collapse * pair.target_spread
    if not (thin or narrow):
        return None
    return Finding(
        f"collapse {pair.name}",
        f"The projected tokens of {pair.name} have collapsed: effective rank {pair.rank:.3g} against "
        f"{pair.target_rank:.3g} of the target, spread {pair.spread:.2g} against {pair.target_spread:.2g}.",
        "Lower the learning rate or the weight, try the projector with LayerNorm (mlp), or an objective that tells "
        "patches apart (info-nce, relational).",
    )


def _shifted(pair: PairHealth, limits: HealthOptions) -> Finding | None:
    # An error near 1 means that no token predicts the target, so that the least one is chance.
    if pair.shift is None or not pair.shifted_error < min(_UNRELATED, limits.spatial_shift_ratio * pair.aligned_error):
        return None
    down, right = pair.shift
    return Finding(
        f"shifted {pair.name} {pair.shift}",
        f"The tokens of {pair.name} are spatially shifted: the token {down:+d} rows and {right:+d} columns "
        f"away predicts the target of a patch better (error {pair.shifted_error:.2f}) than its own "
        f"({pair.aligned_error:.2f}).",
        "Look at the adapter's token span and grid (sfkit.testing.checks.check_correspondence names the "
        "patch), at token_shift of a preset, and at augmentations that move the student's images alone.",
    )


class WarningFilter:
    """Keeps what lasts, and gives each warning once."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.given: dict[str, str] = {}
        self._since: dict[str, int] = {}

    def update(self, step: int, found: list[Finding]) -> list[str]:
        """The new warnings: findings that were there at every measurement of the last ``patience`` steps."""
        self._since = {finding.kind: self._since.get(finding.kind, step) for finding in found}
        new = []
        for finding in found:
            lasted = finding.at_once or step - self._since[finding.kind] >= self.patience
            if lasted and finding.kind not in self.given:
                self.given[finding.kind] = f"{finding.message} {finding.remedy}"
                new.append(self.given[finding.kind])
        return new
