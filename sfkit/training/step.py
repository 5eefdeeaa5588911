"""One training step, and the module beside a policy that runs it."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfkit.errors import SfkitWarning, log_info
from sfkit.policies.base import ForwardCall
from sfkit.training import state
from sfkit.training.checks import SelfCheck
from sfkit.training.contract import EVERY, ContractCheck
from sfkit.training.loss_path import LossPaths
from sfkit.training.loss_scale import LossScale
from sfkit.training.observer import StepObserver
from sfkit.training.pair import Alignment
from sfkit.training.plan import Plan
from sfkit.training.taps import Captured, Taps, TapSite
from sfkit.training.teacher_runner import encode
from sfkit.training.weighting import StepPlan, Weighting
from sfkit.utils.runtime import float32_by_default, is_distributed, is_recompute_forward, is_sharded, refuse_transforms

_NOTHING_VALID = (
    "No visual token of this batch could be aligned: all are masked, as padding, missing cameras or positions without "
    "a valid target (for the geometry teacher: depth of 0, NaN or out of range)."
)


class Aligner(nn.Module):
    """Pairs, taps and teachers of one policy. :meth:`wrapped_forward` and :meth:`forward` are the training step.

    Its ``state_dict`` holds the pairs, the step counter and small teacher statistics, never a teacher's weights.

    Attributes:
        steps: Training calls of ``forward`` so far.
        observers: What watches the steps.
        save_callbacks: Called with the folder after each save.
        enabled: False within ``SpatialForcing.disabled``.
    """

    #: Keys of the state that are no attributes.
    statistics = measured = balance = schedule = state.StateKeyProxy()

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.config, self.adapter = plan.config, plan.adapter
        self.pairs: Any = nn.ModuleList(plan.pairs)
        self.runners = plan.runners
        self.taps = Taps(plan.adapter, list(dict.fromkeys(pair.site for pair in plan.pairs)))
        self.weighting = Weighting(plan.config.weight, plan.schedule, len(self.taps.at))
        self.scale = LossScale(plan.config.grad_accumulation)
        self.loss_paths = LossPaths(plan.adapter, plan.config.attach_loss, self.scale, self.parameters)
        self.check = SelfCheck(plan.adapter, self, self.taps, enabled=plan.config.self_check)
        contract = ContractCheck(plan.pairs, enabled=plan.config.self_check)
        self.observers: list[StepObserver] = [self.check, contract]
        self.save_callbacks: list[Callable[[Path], None]] = []
        self.enabled = True
        self.steps = 0
        self._last: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        self._released = False

    # ---------------------------------------------------------------------------------------------------- the step

    def wrapped_forward(
        self, policy: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Run the policy's own forward; in training, attach the alignment loss to what it returns."""
        if not (policy.training and torch.is_grad_enabled()):
            self._warn_if_left_in_eval(policy)
            return forward(*args, **kwargs)
        plan = self._begin()
        if not plan.factor:
            return self._without_alignment(plan, forward(*args, **kwargs))
        output, captured, inputs = self.taps.run(forward, args, kwargs)
        is_float32 = torch.get_default_dtype() == torch.float32
        attach = self._attach if is_float32 else float32_by_default()(self._attach)
        return attach(plan, (args, kwargs), output, captured, inputs)

    def forward(self, plan: StepPlan, call: ForwardCall, captured: Mapping[TapSite, Captured]) -> Alignment:
        """Align one batch: the sum (or mean) over pairs of ``pair weight * objective``, for each sample.

        It is a module's forward, because FSDP2 gathers the projectors as it begins.
        """
        with torch.no_grad():
            views = self.adapter.views(call)
        students = {site: site.tokens(self.adapter, tensors, views) for site, tensors in captured.items()}
        for observer in plan.observers:
            observer.captured(views, students)
        features = encode(self.pairs, self.adapter, call, views, students, observe=plan.first_run)
        keep_maps = any(observer.reads_maps for observer in plan.observers)
        results = [
            pair(students[pair.site], target, keep_maps) for pair, target in zip(self.pairs, features, strict=True)
        ]
        for observer in plan.observers:
            observer.aligned(views, students, results)
        return self._combine(results)

    def _begin(self) -> StepPlan:
        """Plan this step; where backward recomputes a forward, its plan is that of the first run, without observers."""
        # Recomputation may begin within the first run, whose self-check sends gradients back: nothing of it is kept.
        first_run = not is_recompute_forward()
        if first_run:
            self.loss_paths.start_step()
            if self.enabled or is_distributed():
                self.weighting.begin(self.step, self.device, self.observers)
                if self.enabled and self.weighting.plan.factor:
                    refuse_transforms(type(self.adapter.policy).__name__)
        plan = self.weighting.plan if self.enabled else StepPlan()
        return plan if first_run else replace(plan, observers=(), first_run=False)

    def _attach(
        self,
        plan: StepPlan,
        arguments: tuple[tuple[object, ...], dict[str, object]],
        output: object,
        captured: Mapping[TapSite, Captured],
        inputs: Mapping[str, tuple[object, ...]],
    ) -> object:
        """Align, and attach the weighted loss."""
        policy, (args, kwargs) = self.adapter.policy, arguments
        bound = _signature(type(policy).forward).bind(policy, *args, **kwargs)
        bound.apply_defaults()
        call = ForwardCall(bound.arguments, output, inputs, tuple(site.student_layer for site in captured))
        path = self.loss_paths.of(output)
        share = self.scale.share_of_the_step({**bound.arguments, **kwargs})
        weight = plan.factor * self.weighting.now(self.device)
        if plan.measures:
            meter = self.weighting.meter
            with meter.paused():  # the self-check sends gradients of its own
                result: Alignment = self(plan, call, meter.branches(captured, weight))
        else:
            result = self(plan, call, captured)
        self.steps += plan.first_run
        self._log(plan, path.loss, result, weight)
        # A plain number where there is one: autograd would keep a tensor for backward.
        balanced = self.weighting.balance is not None
        factor = beside(weight, result.loss) if balanced else plan.factor * self.weighting.weight
        figures = {key: value for key, value in self._last.items() if key != "sf_valid_token_fraction"}
        output, total = path.attach(output, factor * share * result.loss, {**figures, **plan.logs})
        if total is not None:
            for observer in plan.observers:
                observer.attached(total)
        return output

    def _combine(self, results: Sequence[Alignment]) -> Alignment:
        losses = torch.stack([pair.weight * result.loss for pair, result in zip(self.pairs, results, strict=True)])
        loss = losses.mean(0) if self.config.pair_reduction == "mean" else losses.sum(0)
        features = [result for pair, result in zip(self.pairs, results, strict=True) if not pair.reads_attention]
        cosine = torch.stack([result.cosine for result in features or results])
        return Alignment(loss, cosine.mean(), torch.stack([result.valid for result in results]).mean())

    # ------------------------------------------------------------------------------------ steps without alignment

    @float32_by_default()
    def _without_alignment(self, plan: StepPlan, output: object) -> object:
        """A training step that is disabled, or at which weight or schedule are 0.

        With several processes, the projectors stay in its graph, and it takes part in all collectives. DDP otherwise
        stops with "expected to have finished reduction", or hangs when only some ranks skip. Adding zero times a
        parameter leaves the loss bit-identical. A single process needs none of it.
        """
        ended = self.weighting.schedule.over(self.step)
        scheduled = self.enabled and self.weighting.weight
        if scheduled and ended:
            self._release_teachers()
        # All ranks, and the steps of a schedule, stay together.
        self.steps += plan.first_run
        if plan.first_run and is_distributed():
            if not ended:
                for runner, _ in dict.fromkeys((pair.runner, pair.future) for pair in self.pairs):
                    runner.participate_without_data()
                for pair in self.pairs:
                    pair.objective.participate_without_data()
            if not (is_sharded(self) or is_sharded(self.adapter.policy)):  # FSDP2 allows what all ranks leave out
                output = self.loss_paths.of(output).keep_in_graph(output, self._zero)
        loss = self.loss_paths.of(output).loss if scheduled else None
        if loss is None:
            return output
        logs = {"action_loss": loss.detach().float().mean(), "sf_effective_weight": torch.tensor(0.0)}
        return self.adapter.with_loss(output, loss, logs)

    def _release_teachers(self) -> None:
        """Free the memory of the teachers, once the weight is 0 for good."""
        if self._released:
            return
        self._released = True
        for runner in self.runners:
            runner.release()
        described = self.weighting.schedule.describe()
        log_info(f"At step {self.step} the schedule ({described}) has ended: nothing is aligned any more.")

    def _zero(self, like: Tensor) -> Tensor:
        """0 times the projectors, in the shape ``(*)`` of a loss."""
        parts = (p.flatten()[:1].sum() * 0.0 for p in self.pairs.parameters())
        return sum(parts, torch.zeros_like(like))

    # ---------------------------------------------------------------------------------------------- counting, logs

    @property
    def step(self) -> int:
        """The schedule's step: training calls of ``forward`` so far, in groups of ``grad_accumulation``."""
        return self.steps // (self.scale.accumulation or 1)

    def _log(self, plan: StepPlan, loss: Tensor | None, result: Alignment, weight: Tensor) -> None:
        """Keep the figures of a step: the action loss, ``()`` or ``(b, ...)``, and the weight ``()``."""
        self._last = {
            **({} if loss is None else {"action_loss": loss.detach().float().mean()}),
            "sf_loss": result.loss.detach().mean(),
            "sf_cosine": result.cosine,
            "sf_effective_weight": weight,
            "sf_valid_token_fraction": result.valid,
        }
        self._released = False
        if self.steps % EVERY == 1:  # looking waits for the device
            if not bool(result.valid > 0):
                self._warn_once(_NOTHING_VALID)
            balance = self.weighting.balance
            if balance is not None and self.steps > 1 and not balance.measured:
                self._warn_once(
                    f'weight="{self.config.weight}" has nothing to balance: no action gradient was seen at the tapped '
                    f"tokens, so the weight stays {balance.ratio:g}. Choose a smaller student layer (after the last "
                    "block, the tapped tokens may take no part in the action), or a fixed weight; inside a graph of "
                    "torch.compile it cannot be measured."
                )

    def _warn_if_left_in_eval(self, policy: nn.Module) -> None:
        forgotten = not policy.training and self.enabled and self.weighting.weight and torch.is_grad_enabled()
        if forgotten and any(parameter.requires_grad for parameter in policy.parameters()):
            self._warn_once(
                f"{type(policy).__name__} ran with gradients while in eval mode, so nothing is aligned. Call "
                "policy.train() before training (LeRobot's from_pretrained returns policies in eval mode), or use "
                "torch.no_grad() for evaluation."
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=4)

    # ------------------------------------------------------------------------------------------------ device, state

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.adapter.policy.parameters()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Aligner:
        """Follow the policy to another device, but stay in float32 when it is cast."""

        def keep_precision(tensor: Tensor) -> Tensor:
            """A parameter or buffer ``(*)``."""
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{key}": value for key, value in state.of(self).items()})

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            # A plain checkpoint of the policy: the children then load what they already hold.
            state_dict.update(self.state_dict(prefix=prefix))
            warnings.warn(
                "sfkit: the checkpoint has no projector; the present one was kept.", SfkitWarning, stacklevel=2
            )
        state.load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def beside(scalar: Tensor, other: Tensor) -> Tensor:
    """A number ``()`` on the device of a tensor ``(*)``; a number on the host works with any, without a copy."""
    return scalar if scalar.device.type == "cpu" else scalar.to(other.device)


@functools.cache
def disable_compile() -> None:
    """Keep torch.compile out of the alignment, which is Python by nature; the policy's own forward is compiled.

    Called at wrap time and not on import: it pulls in torch._dynamo, as building an optimizer does anyway.
    """
    disable: Any = torch.compiler.disable
    disable(Aligner.wrapped_forward, recursive=False)
    disable(Taps.run, recursive=False)
    for name in ("_begin", "_attach", "_without_alignment"):
        setattr(Aligner, name, disable(getattr(Aligner, name)))


@functools.cache
def _signature(forward: Callable[..., object]) -> inspect.Signature:
    return inspect.signature(forward)
