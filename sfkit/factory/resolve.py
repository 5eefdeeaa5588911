"""Reading what the user wrote as pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfkit.config import PairConfig, StudentLayer
from sfkit.errors import ConfigError, did_you_mean
from sfkit.factory.components import ComponentLike
from sfkit.objectives.base import Objective
from sfkit.projectors.base import Projector
from sfkit.teachers.base import Teacher
from sfkit.transforms.base import Transform


@dataclass(frozen=True)
class Wish:
    """A pair as it was asked for; None where something else decides."""

    student_layer: StudentLayer | None
    teacher: ComponentLike | Teacher
    teacher_layer: int | None = None
    weight: float = 1.0
    future: int = 0
    objective: ComponentLike | Objective | None = None
    projector: ComponentLike | Projector | None = None
    transforms: Sequence[ComponentLike | Transform] | None = None


_FORMS = (
    "Give (student_layer, teacher, teacher_layer, weight), or a mapping with those keys and, if wanted, future, "
    "objective, projector and transforms; teacher_layer and weight may be left out."
)


def read_wishes(teacher: Any, student_layer: Any, teacher_layer: int | None, pairs: Sequence[Any] | None) -> list[Wish]:
    """All pairs that are asked for, from either form of :meth:`sfkit.SpatialForcing.wrap`.

    Raises:
        ConfigError: Neither or both forms, no pair, or one that cannot be read.
    """
    if pairs is None:
        if teacher is None:
            raise ConfigError("No teacher.", 'Give one, for instance teacher="geometry", or pairs=[...].')
        return [Wish(student_layer, teacher, teacher_layer)]
    if teacher is not None or student_layer is not None or teacher_layer is not None:
        raise ConfigError("pairs=[...] names teachers and layers itself.", "Give either pairs or teacher.")
    if not pairs:
        raise ConfigError("pairs is empty.", "List at least one (student_layer, teacher, teacher_layer, weight).")
    return [_wish(pair) for pair in pairs]


def _wish(pair: Any) -> Wish:
    if isinstance(pair, PairConfig):
        return Wish(**{name: getattr(pair, name) for name in PairConfig.model_fields})
    if isinstance(pair, Mapping):
        unknown = [str(key) for key in pair if key not in PairConfig.model_fields]
        if unknown or not {"student_layer", "teacher"} <= pair.keys():
            hints = "".join(did_you_mean(key, PairConfig.model_fields) for key in unknown)
            raise ConfigError(f"Cannot read a pair from {dict(pair)!r}.{hints}", _FORMS)
        return Wish(**pair)
    try:
        return Wish(*pair) if not isinstance(pair, str) and 2 <= len(pair) <= 4 else _unreadable(pair)
    except TypeError:
        return _unreadable(pair)


def _unreadable(pair: Any) -> Wish:
    raise ConfigError(f"Cannot read a pair from {pair!r}.", _FORMS)
