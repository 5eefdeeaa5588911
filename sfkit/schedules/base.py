"""The schedule interface, and the product of several schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from sfkit.errors import ConfigError
from sfkit.registry.component import AnyOptions, Configurable


class Schedule(Configurable, ABC):
    """A factor on the weight of the alignment loss, for each step.

    A step is one call of the policy's ``forward`` in training mode, whether or not it was aligned, on this rank or
    another. With ``SpatialForcing.wrap(..., grad_accumulation=N)`` a step is N such calls, the batches of one optimizer
    step. Steps count from 0; the count is saved, and continues after a resume.

    A factor must depend on the step, the options and :meth:`state` alone, so that it is the same on all ranks.
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
        """Whether :meth:`observe` needs the cosine of this step. Each such step waits for the device once."""
        return False

    def observe(self, step: int, cosine: float) -> None:
        """Take the cosine between the alignment gradient and the action gradient at the tapped tokens.

        Args:
            step: The step of the measurement.
            cosine: In [-1, 1], over all tapped layers and all ranks; NaN where it could not be measured.
        """

    def state(self) -> dict[str, float]:
        """What must survive a resume beside the step, finite; the same keys at all times. Empty by default."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state` returned; a ValueError says why something else is refused."""


class Product(tuple[Schedule, ...]):
    """Several schedules that apply together: their factors multiply.

    Raises:
        ConfigError: They leave no step to align.
    """

    __slots__ = ()

    def __init__(self, schedules: Iterable[Schedule]) -> None:
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
        for schedule in self:
            factor = schedule.factor(step)
            if not (math.isfinite(factor) and factor >= 0):
                raise ConfigError(f"Schedule {schedule.name!r} gave the factor {factor} at step {step}.", "Give >= 0.")
            product *= factor
        return product

    def over(self, step: int) -> bool:
        """Whether the product is 0 at this step and at every later one."""
        return any(schedule.over(step) for schedule in self)

    def watches_at(self, step: int) -> bool:
        """Whether one of the schedules needs the cosine of this step."""
        return any(schedule.watches_at(step) for schedule in self)

    def observe(self, step: int, cosine: float) -> None:
        """Pass the cosine to the schedules that need it."""
        for schedule in self:
            if schedule.watches_at(step):
                schedule.observe(step, cosine)

    def describe(self) -> str:
        """The schedules by name, with their options."""
        return " × ".join(map(_described, self)) or "constant"

    def state(self) -> dict[str, float]:
        """The state of all schedules, by their place in the product and their name."""
        return {
            f"{index}.{schedule.name}.{key}": value
            for index, schedule in enumerate(self)
            for key, value in schedule.state().items()
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state` returned; values of another schedule are ignored."""
        for index, schedule in enumerate(self):
            prefix = f"{index}.{schedule.name}."
            # A run may resume with another schedule, whose state is then new.
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if own:
                schedule.load_state(own)


def _described(schedule: Schedule) -> str:
    options = ", ".join(f"{key}={value}" for key, value in schedule.changed_options.items())
    return f"{schedule.name}({options})" if options else schedule.name
