"""When to warn, in plain words and with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sfkit.config import HealthOptions
from sfkit.health.report import Health, PairHealth

_SAME, _UNRELATED = 1e-6, 0.98


class Finding(NamedTuple):
    """One thing that is wrong at one measurement.

    Attributes:
        kind: The rule, and what it is about: a finding lasts as long as this comes back.
        message: What is wrong, and what to do.
        at_once: Whether one measurement is enough.
    """

    kind: str
    message: str
    at_once: bool = False


def findings(health: Health, limits: HealthOptions, *, idle_projector: bool) -> Iterator[Finding]:
    """Everything that one measurement shows.

    Args:
        health: The measurement.
        limits: Thresholds.
        idle_projector: The optimizer has moved the policy since the last measurement, and not the projector.
    """
    if health.reaches_policy is False:
        yield Finding(
            "unreached",
            "The alignment gradient reaches no trainable parameter of the policy: only the projector learns. "
            "Unfreeze what lies before the tapped layer, put LoRA on it, or tap after trainable layers.",
            at_once=True,
        )
    if health.ratio > limits.max_grad_ratio:
        yield Finding(
            "dominates",
            f"The alignment gradient dominates: it is {health.ratio:.3g} times the action gradient. Lower the weight "
            f'(about {0.3 / health.ratio:.2g} of the present one), or use weight="balance:0.1".',
        )
    if health.cosine < limits.conflict:
        yield Finding(
            "conflict",
            f"The alignment gradient works against the action gradient (cosine {health.cosine:.2f}). Lower the weight, "
            'align an earlier student layer, or end the alignment: schedule="conflict", or "stop:N".',
        )
    if idle_projector:
        yield Finding(
            "unused",
            "The optimizer moves the policy and not the projector, so the policy is aligned with a random head. Build "
            "it after the wrap, from parameters that include policy.spatial_forcing, with a learning rate above 0.",
        )
    if health.pairs and all(pair.mean_cosine > limits.max_cosine for pair in health.pairs):
        yield Finding(
            "saturated",
            f"The projected tokens agree with the target almost fully (cosine above {limits.max_cosine:g}). "
            'The teacher can be stopped: resume with schedule="stop:N", or choose a richer target.',
        )
    for pair in health.pairs:
        yield from _of_pair(pair, limits)


def _of_pair(pair: PairHealth, limits: HealthOptions) -> Iterator[Finding]:
    constant = pair.target_spread < _SAME
    if constant or pair.target_variation < _SAME:
        what = "all its tokens point the same way" if constant else "it is the same for every image"
        yield Finding(
            f"constant {pair.name}",
            f"The target of {pair.name} is constant: {what}. Check the teacher's input, its layer and its transforms.",
        )
    thin = pair.rank < limits.collapse * pair.target_rank
    if not constant and (thin or pair.spread < limits.collapse * pair.target_spread):
        yield Finding(
            f"collapse {pair.name}",
            f"The projected tokens of {pair.name} have collapsed: effective rank {pair.rank:.3g} against "
            f"{pair.target_rank:.3g} of the target, spread {pair.spread:.2g} against {pair.target_spread:.2g}. Lower "
            "learning rate or weight, or try the projector mlp (LayerNorm), or the objective info-nce or relational.",
        )
    # An error near 1 means that no token predicts the target, so that the least one is chance.
    if pair.shift and pair.shifted_error < min(_UNRELATED, limits.spatial_shift_ratio * pair.aligned_error):
        yield Finding(
            f"shifted {pair.name} {pair.shift}",
            f"The tokens of {pair.name} are spatially shifted: the token {pair.shift[0]:+d} rows and "
            f"{pair.shift[1]:+d} columns away predicts the target of a patch better (error {pair.shifted_error:.2f}) "
            f"than its own ({pair.aligned_error:.2f}). Check the adapter's token span and grid (by "
            "sfkit.testing.checks.check_correspondence), token_shift, and augmentations of the student's images alone.",
        )


class WarningFilter:
    """Keeps what lasts, and gives each warning once."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.given: dict[str, str] = {}
        self._since: dict[str, int] = {}

    def update(self, step: int, found: Sequence[Finding]) -> list[str]:
        """The new warnings: findings that were there at every measurement of the last ``patience`` steps."""
        self._since = {one.kind: self._since.get(one.kind, step) for one in found}
        new = []
        for one in found:
            lasted = one.at_once or step - self._since[one.kind] >= self.patience
            if lasted and one.kind not in self.given:
                self.given[one.kind] = one.message
                new.append(one.message)
        return new
