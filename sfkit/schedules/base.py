"""The schedule interface, and several schedules at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from sfkit.errors import ConfigError
from sfkit.registry.component import AnyOptions, Configurable


class Schedule(Configurable, ABC):
    """A factor on the weight of the alignment loss, for each step.

    A step is one call of the policy's ``forward`` in training mode, whether or not it was aligned, on this rank or
    another; with ``SpatialForcing.wrap(..., grad_accumulation=N)`` it is N such calls, the batches of one optimizer
    step. It counts from 0, is saved, and goes on after a resume.

    A factor must follow from the step, the options and :meth:`state` alone: then it is the same on all ranks.

    """

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @abstractmethod
    def factor(self, step: int) -> float:
        """The factor at a step, 0 or more; at 0 the teacher does not run."""

    def over(self, step: int) -> bool:
        """Whether the factor is 0 at this step and at every later one: the teacher is then freed."""
        return False

    def watches_at(self, step: int) -> bool:
        """Whether :meth:`observe` must hear of this step. Each such step waits for the device once."""
        return False

    def observe(self, step: int, cosine: float) -> None:
        """Hear of the cosine between the alignment gradient and the action gradient at the tapped tokens.

        Args:
            step: At which it was measured.
            cosine: In [-1, 1], over all tapped layers and all ranks; NaN where it could not be measured.
        """

    def state(self) -> dict[str, float]:
        """What must survive a resume beside the step; empty for most."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take over what :meth:`state` returned."""


class Product(Sequence[Schedule]):
    """Several schedules at once: their factors multiply.

    Raises:
        ConfigError: They leave no step to align.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self._schedules = tuple(schedules)
        if self.over(0):
            raise ConfigError(
                f"The schedule {self.describe()} never aligns: its weight is 0 from the first step.",
                "Leave the alignment out, or let the schedule end later.",
            )

    def factor(self, step: int) -> float:
        """The product of the factors at a step.

        Raises:
            ConfigError: A schedule gave a factor that is negative or not finite.
        """
        product = 1.0
        for schedule in self._schedules:
            factor = schedule.factor(step)
            if not (math.isfinite(factor) and factor >= 0):
                raise ConfigError(
                    f"Schedule {schedule.name!r} gave the factor {factor} at step {step}.",
                    "Factors are finite and not negative.",
                )
            product *= factor
        return product

    def over(self, step: int) -> bool:
        """Whether the product is 0 at this step and at every later one."""
        return any(schedule.over(step) for schedule in self._schedules)

    def watches_at(self, step: int) -> bool:
        """Whether one of them must hear of this step."""
        return any(schedule.watches_at(step) for schedule in self._schedules)

    def observe(self, step: int, cosine: float) -> None:
        """Tell those that watch this step."""
        for schedule in self._schedules:
            if schedule.watches_at(step):
                schedule.observe(step, cosine)

    def describe(self) -> str:
        """The schedules by name, with their options."""
        return " × ".join(_described(schedule) for schedule in self._schedules) or "constant"

    def state(self) -> dict[str, float]:
        """What all of them must keep over a resume, under their place in the product and their name."""
        return {
            f"{index}.{schedule.name}.{key}": value
            for index, schedule in enumerate(self._schedules)
            for key, value in schedule.state().items()
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take over what :meth:`state` returned; what belongs to another schedule is left alone."""
        for index, schedule in enumerate(self._schedules):
            own = f"{index}.{schedule.name}."
            found = {key[len(own) :]: value for key, value in state.items() if key.startswith(own)}
            if found:
                schedule.load_state(found)

    def __len__(self) -> int:
        return len(self._schedules)

    def __getitem__(self, index: Any) -> Any:
        return self._schedules[index]


def _described(schedule: Schedule) -> str:
    options = ", ".join(f"{key}={value}" for key, value in schedule.spec.options.items())
    return f"{schedule.name}({options})" if options else schedule.name
