"""What the handle's ``state_dict`` holds beside its modules: counters and small statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def load(aligner: Aligner, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Resume from the entries under a prefix, and take them out of ``state_dict``."""
    names = {"step", "measured", "balance", "schedule", "statistics", *(one.key for one in aligner.observers)}
    keys = [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :].partition(".")[0] in names]
    own = {key[len(prefix) :]: state_dict.pop(key) for key in keys}

    def under(start: str) -> dict[str, Tensor]:
        return {key[len(start) :]: value for key, value in own.items() if key.startswith(start)}

    aligner.steps = int(own.get("step", aligner.steps))
    aligner.weighting.load_state(own, (aligner.steps - 1) // (aligner.scale.accumulation or 1))
    for observer in aligner.observers:
        observer.load_state(under(f"{observer.key}."))
    for index, runner in enumerate(aligner.runners):
        found = under(f"statistics.{index}.")
        if found:
            runner.teacher.load_state(found)
