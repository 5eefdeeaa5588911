"""The report of ``health()``, as data and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from sfkit.config import StudentLayer


@dataclass(frozen=True)
class LayerHealth:
    """One tapped layer.

    Attributes:
        student_layer: Which.
        ratio: Norm of the alignment gradient over that of the action gradient, at the tapped tokens.
        cosine: Between the two.
        drift: How far the tokens' distribution has moved since the run began, in its standard deviations then.
        drift_noise: ``drift`` between two batches of an unchanged policy.
    """

    student_layer: StudentLayer
    ratio: float
    cosine: float
    drift: float
    drift_noise: float


@dataclass(frozen=True)
class PairHealth:
    """One pair of a student layer and a teacher layer.

    Attributes:
        student_layer: Of the student.
        teacher: Name.
        teacher_layer: Of the teacher.
        cosine: Of projected tokens and target, by view.
        valid: Share of the tokens that were compared.
        token_norm: Mean norm of the tapped tokens.
        projected_norm: Of the projected tokens.
        target_norm: Of the target.
        rank: Effective rank of the projected tokens' directions.
        target_rank: Of the target's.
        spread: How much the projected tokens' directions differ: 0 (all the same) to 1.
        target_spread: As ``spread``, of the target.
        target_variation: How much the target differs between images, at one place.
        aligned_error: Error of a linear prediction of the target from the token at the same place; 1: that of the mean.
        shifted_error: The least such error with tokens taken one patch away.
        shift: Rows and columns from a patch to the token that predicts its target with that error.
    """

    student_layer: StudentLayer
    teacher: str
    teacher_layer: int
    cosine: dict[str, float]
    valid: float
    token_norm: float
    projected_norm: float
    target_norm: float
    rank: float
    target_rank: float
    spread: float
    target_spread: float
    target_variation: float
    aligned_error: float
    shifted_error: float
    shift: tuple[int, int] | None

    @property
    def mean_cosine(self) -> float:
        """Mean over the views that had valid tokens; NaN where none had."""
        known = [value for value in self.cosine.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    @property
    def name(self) -> str:
        """The pair, for messages."""
        return f"{_layer(self.student_layer)} -> {self.teacher} layer {self.teacher_layer}"


@dataclass(frozen=True)
class Health:
    """Figures of one measured step. NaN is what could not be measured.

    Attributes:
        step: At which it was measured; None: not yet.
        every: The monitor measures at one step of so many; 0: never.
        ratio: Norm of the alignment gradient over that of the action gradient, over all tapped tokens and ranks.
        cosine: Between the two.
        layers: By tapped layer.
        pairs: By pair, from the tokens of this rank.
        projector_movement: How far the projector has moved since the run began, relative to what it was.
        reaches_policy: Whether the alignment gradient reaches trainable parameters of the policy; None: not known.
        warnings: Everything that the monitor has warned of so far.
    """

    step: int | None
    every: int
    ratio: float = math.nan
    cosine: float = math.nan
    layers: tuple[LayerHealth, ...] = ()
    pairs: tuple[PairHealth, ...] = ()
    projector_movement: float = math.nan
    reaches_policy: bool | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON: what could not be measured is None."""
        found: dict[str, Any] = json.loads(TypeAdapter(Health).dump_json(self))
        return found

    def __str__(self) -> str:
        if self.step is None:
            lines = ["Health: nothing was measured yet." if self.every else "Health: the monitor is off (every=0)."]
        else:
            lines = [f"Health at step {self.step} (measured at one step of {self.every}):", *self._figures()]
        return "\n".join([*lines, *(f"  WARNING: {message}" for message in self.warnings)])

    def _figures(self) -> Iterator[str]:
        yield f"  alignment gradient / action gradient {_n(self.ratio)}, cosine {_n(self.cosine)}"
        for layer in self.layers:
            gradients = f"gradient ratio {_n(layer.ratio)}, cosine {_n(layer.cosine)}"
            drift = f"drift {_n(layer.drift)} (noise {_n(layer.drift_noise)})"
            yield f"  {_layer(layer.student_layer)}: {gradients}, {drift}"
        for pair in self.pairs:
            views = ", ".join(f"{view} {_n(value)}" for view, value in pair.cosine.items())
            yield f"  {pair.name}: cosine {views}; {pair.valid:.0%} of tokens valid"
            norms = f"tokens {_n(pair.token_norm)}, projected {_n(pair.projected_norm)}, target {_n(pair.target_norm)}"
            yield f"    norms: {norms}; effective rank {_n(pair.rank)} (target {_n(pair.target_rank)})"
            if pair.shift is not None:
                errors = f"{_n(pair.aligned_error)} in place, {_n(pair.shifted_error)} at best one patch away"
                yield f"    spatial correspondence: error {errors}"
        yield f"  projector moved by {_n(self.projector_movement)} of its size"


def _layer(student_layer: StudentLayer) -> str:
    return f"student layer {student_layer}" if isinstance(student_layer, int) else student_layer


def _n(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"
