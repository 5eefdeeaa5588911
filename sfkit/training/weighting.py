"""What a training step does: the weight of the alignment loss, its schedule, its balance, and who observes the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfkit.config import balance_ratio
from sfkit.schedules.base import Product
from sfkit.training.gradients import GradientMeter, GradientSums
from sfkit.training.observer import StepObserver

#: Share of the running mean that one step keeps: it looks back over about fifty steps.
_KEEP = 0.98
#: The weight stays within the ratio times or over this, whatever was measured.
_WIDEST = 1e4


@dataclass(frozen=True)
class StepPlan:
    """What one training step does; the same on all ranks.

    Attributes:
        step: The schedule's step.
        factor: Of the schedule, on the weight; at 0 nothing is aligned.
        measures: Whether the gradients at the taps are measured.
        observers: Who observes the step.
        logs: Figures of the step before, for the log of this one.
        first_run: False where backward recomputes the forward.
    """

    step: int = 0
    factor: float = 0.0
    measures: bool = False
    observers: Sequence[StepObserver] = ()
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    first_run: bool = True


class Weighting:
    """The weight of the alignment loss, step by step.

    Args:
        weight: A number, or ``"balance:R"``.
        schedule: Factors on it.
        sites: How many sites are tapped.

    Attributes:
        plan: Of the present step.
        gradients: ``sf_grad_ratio`` and ``sf_grad_cosine``, once they were measured.
    """

    def __init__(self, weight: float | str, schedule: Product, sites: int) -> None:
        ratio = balance_ratio(weight)
        self.weight = float(weight) if ratio is None else ratio
        self.balance = None if ratio is None else Balance(ratio)
        self.schedule = schedule
        self.meter = GradientMeter(sites)
        self.plan = StepPlan()
        self.gradients: dict[str, Tensor] = {}

    def begin(self, step: int, device: torch.device, observers: Sequence[StepObserver]) -> None:
        """Take in what the last step has measured, and plan this one. A collective where gradients were measured."""
        logs = self._take_in(device) if self.plan.measures else {}
        watched = False
        factor = 1.0 if self.weight else 0.0
        if self.weight and self.schedule:  # an empty one is constant
            factor, watched = self.schedule.factor(step), self.schedule.watches_at(step)
        present = tuple(one for one in observers if one.next_step <= step) if factor else ()
        for observer in present:
            observer.begin(step)
        measures = bool(factor) and (self.balance is not None or watched or any(one.reads_gradients for one in present))
        self.plan = StepPlan(step, factor, measures, present, logs)

    def _take_in(self, device: torch.device) -> dict[str, Tensor]:
        step, logs = self.plan.step, {}
        sums = GradientSums.of(self.meter.take(device))
        for observer in self.plan.observers:
            if observer.reads_gradients:
                observer.gradients(step, sums)
                logs = self.gradients = {"sf_grad_ratio": sums.ratio, "sf_grad_cosine": sums.cosine}
        if self.balance is not None:
            self.balance.update(sums)
        if self.schedule.watches_at(step):
            self.schedule.observe(step, float(sums.cosine))
        return logs

    def now(self, device: torch.device) -> Tensor:
        """``()``: the weight of the coming step, before its schedule."""
        return torch.tensor(self.weight) if self.balance is None else self.balance.weight(device)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; the same keys at every step, as an EMA goes through two states side by side."""
        found = {}
        if self.balance is not None:
            found["balance.log"] = self.balance.log.detach().clone()
        for key, figure in self.schedule.state().items():
            found[f"schedule.{key}"] = torch.tensor(figure, dtype=torch.float64)
        if found:
            table = self.meter.table
            found["measured"] = torch.zeros(self.meter.sites, 4) if table is None else table.clone()
        return found

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Resume. The step after the save takes in what the step before it, ``step``, has measured.

        Args:
            state: Of :meth:`state`; ``measured`` is ``(sites, 4)``, ``balance.log`` is ``()``.
            step: The last step of the saved run.
        """
        table, log = state.get("measured"), state.get("balance.log")
        self.meter.table = None if table is None else table.clone()
        self.plan = StepPlan(step, measures=table is not None)
        if self.balance is not None and log is not None:
            self.balance.log = log.detach().clone().float()
        own = "schedule."
        self.schedule.load_state({key[len(own) :]: float(state[key]) for key in state if key.startswith(own)})


class Balance:
    """``w = ratio * |g_action| / |g_alignment|``, both at the tapped tokens, for an alignment loss of weight 1.

    The logarithm of that quotient is averaged over steps (exponentially, 0.98), so that ratio and weight are treated
    alike in both directions and a single step weighs little. The sums are those of all ranks, so the weight is the
    same on all. Before the first measurement, in the very first step, ``w`` is the ratio itself.

    Everything stays on the device: using and updating the weight waits for nothing.

    Source: the ratio of gradient norms at a shared tensor is that of GradNorm (arXiv 1711.02257, section 3) and of the
    adaptive weight of VQGAN (arXiv 2012.09841, equation 7), which take it at parameters and by further backward passes.

    Args:
        ratio: Above 0.

    Attributes:
        log: ``()`` the running mean; NaN before the first measurement.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.log = torch.tensor(torch.nan)

    def weight(self, device: torch.device) -> Tensor:
        """``()`` float32: the weight of the coming step."""
        gain = self.log.to(device).nan_to_num(0.0).exp().clamp(1 / _WIDEST, _WIDEST)
        return self.ratio * gain

    def update(self, sums: GradientSums) -> None:
        """Add a measurement to the running mean; one in which a gradient was not seen changes nothing."""
        fresh = 0.5 * (sums.action.sum().log() - sums.unweighted.sum().log())
        before = self.log.to(fresh.device)
        mean = torch.where(before.isnan(), fresh, _KEEP * before + (1 - _KEEP) * fresh)
        self.log = torch.where(sums.known, mean, before)

    @property
    def measured(self) -> bool:
        """Whether anything was measured so far. Asking waits for the device."""
        return not bool(self.log.isnan())
