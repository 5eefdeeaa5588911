"""What the handle's ``state_dict`` holds beside its modules: counters and small statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sfkit.training.step import Aligner


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


def load(aligner: Aligner, state_dict: dict[str, Any], prefix: str) -> None:
    """Resume from the entries under a prefix, and take them out of ``state_dict``."""

    def take(start: str) -> dict[str, Tensor]:
        own = f"{prefix}{start}"
        return {key[len(own) :]: state_dict.pop(key) for key in [*state_dict] if key.startswith(own)}

    aligner.steps = int(state_dict.pop(f"{prefix}step", aligner.steps))
    weighting = {"measured": state_dict.pop(f"{prefix}measured", None)}
    weighting |= {f"schedule.{key}": value for key, value in take("schedule.").items()}
    weighting |= {f"balance.{key}": value for key, value in take("balance.").items()}
    last = (aligner.steps - 1) // (aligner.scale.accumulation or 1)
    aligner.weighting.load_state({key: value for key, value in weighting.items() if value is not None}, last)
    for observer in aligner.observers:
        observer.load_state(take(f"{observer.key}.") if observer.key else {})
    for index, runner in enumerate(aligner.runners):
        found = take(f"statistics.{index}.")
        if found:
            runner.teacher.load_state(found)
    take("statistics.")
