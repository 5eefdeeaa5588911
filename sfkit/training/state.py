"""What the handle's ``state_dict`` holds beside its modules: counters and small statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfkit.errors import CheckpointError, ShapeError

if TYPE_CHECKING:
    from sfkit.training.step import Aligner

#: The modules, which torch loads.
_PAIRS = "pairs."
#: A float64 counts up to here in ones.
_MOST_STEPS = 2**53
#: Entries that hold NaN or infinity in sound runs too: sums that overflowed, and references without a valid token.
_UNBOUNDED = ("measured", "health.")


class StateKeyProxy:
    """Stands for a key of the state that is no attribute: torch looks keys up as paths to gather FSDP2's parts."""

    def __getattr__(self, name: str) -> StateKeyProxy:
        if name.startswith("_"):
            raise AttributeError(name)
        return self


def of(aligner: Aligner) -> dict[str, Tensor]:
    """Step counter, weighting, and the teachers' statistics."""
    found = {"step": torch.tensor(aligner.steps), **aligner.weighting.state()}
    for index, runner in enumerate(aligner.runners):
        found.update({f"statistics.{index}.{key}": value for key, value in runner.teacher.state().items()})
    return found


def check(aligner: Aligner, entries: Mapping[str, object], optional: Mapping[str, Tensor] | None = None) -> None:
    """Compare entries with what this handle would save; nothing is loaded.

    Args:
        aligner: The handle.
        entries: Its state under the handle's own names, tensors ``(*)``.
        optional: Tensors ``(*)`` in the shapes of entries that may be missing. None: tensors of the pairs may be
            missing as well, which torch reports.

    Raises:
        CheckpointError: An entry is missing, unknown, of another shape or dtype, or not finite; each is named.
    """
    present = {key: value for key, value in aligner.state_dict().items() if not key.startswith("statistics.")}
    faults = [
        f"missing key {key}"
        for key in present
        if key not in entries and (optional is not None or not key.startswith(_PAIRS))
    ]
    for key, value in entries.items():
        of_teacher = any(key.startswith(f"statistics.{index}.") for index in range(len(aligner.runners)))
        expected = present.get(key, (optional or {}).get(key))
        if expected is None and not of_teacher:
            faults.append(f"unexpected key {key}")
        elif fault := _fault(key, value, expected):
            faults.append(f"{key} {fault}")
    if faults:
        raise CheckpointError(
            f"The saved state does not fit: {'; '.join(faults)}.",
            "Use the policy, layers, teacher and projector that it was saved with; or it is damaged.",
        )


def _fault(key: str, value: object, expected: Tensor | None) -> str:
    """What is wrong with an entry ``(*)``, of which there is an ``expected`` one ``(*)`` or none; "": nothing."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if expected is not None and value.shape != expected.shape:
        return f"has a size mismatch: {tuple(value.shape)}, expected {tuple(expected.shape)}"
    if expected is not None and value.dtype != expected.dtype:
        return f"is {value.dtype}, expected {expected.dtype}"
    if key == "step" and not 0 <= int(value) < _MOST_STEPS:
        return f"is {int(value)}, no count of steps"
    # Before the first measurement the balance is NaN.
    unknown = value.isnan() if key == "balance.log" else torch.zeros_like(value, dtype=torch.bool)
    if not key.startswith(_UNBOUNDED) and not bool((value.isfinite() | unknown).all()):
        return "holds NaN or infinite values"
    return ""


def load(aligner: Aligner, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Resume from the entries under a prefix, and take them out of ``state_dict``.

    Raises:
        CheckpointError: Something does not fit; nothing was changed.
    """
    entries = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    check(aligner, entries)
    own = {key: state_dict.pop(prefix + key) for key in entries if not key.startswith(_PAIRS)}
    _load_parts(aligner, own)
    aligner.steps = int(own["step"])
    aligner.weighting.load_state(own, (aligner.steps - 1) // (aligner.scale.accumulation or 1))
    for observer in aligner.observers:
        observer.load_state({})


def _load_parts(aligner: Aligner, entries: Mapping[str, Tensor]) -> None:
    """Load the entries ``(*)`` that a teacher or a schedule may refuse; where one does, all go back."""
    undo: list[Callable[[], None]] = []

    def under(start: str) -> dict[str, Tensor]:
        return {key[len(start) :]: value for key, value in entries.items() if key.startswith(start)}

    where, schedule = "schedule", aligner.weighting.schedule
    try:
        undo.append(functools.partial(schedule.load_state, schedule.state()))
        schedule.load_state({key: float(value) for key, value in under("schedule.").items()})
        for index, runner in enumerate(aligner.runners):
            where, teacher = f"statistics.{index}", runner.teacher
            undo.append(functools.partial(teacher.load_state, teacher.state()))
            teacher.load_state(under(f"{where}."))
    except (ValueError, KeyError, TypeError, RuntimeError, ShapeError) as error:
        for restore in undo:
            restore()
        raise CheckpointError(f"The saved state does not fit: {where}: {error}.", "It is damaged.") from error
