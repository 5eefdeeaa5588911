"""The module beside a policy: it taps the hidden states, runs the teachers and computes the alignment loss."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfkit.config import Recompute, StudentLayer, balance_ratio
from sfkit.errors import SfkitWarning, log_info
from sfkit.health.monitor import Monitor, MonitoredPair
from sfkit.policies.base import ForwardCall
from sfkit.projectors.base import Projector
from sfkit.training.checks import SelfCheck, check_views, is_sharded, refuse_cast, refuse_shards
from sfkit.training.gradients import GradientMeter, GradientSums
from sfkit.training.loss_path import Joiner
from sfkit.training.loss_scale import StepScale
from sfkit.training.messages import NOTHING_VALID, left_in_eval, nothing_to_balance
from sfkit.training.pair import Plan, featured
from sfkit.training.reduction import warn_if_sum_reduction
from sfkit.training.step import Alignment, align
from sfkit.training.taps import Captured, InputRecorder, Tap, tap_at, tokens_at
from sfkit.training.weighting import Balance, beside
from sfkit.utils.runtime import is_distributed, is_recompute_forward, refuse_transforms
from sfkit.views.types import FeatureMap, Views

_LOGGED = ("action_loss", "sf_loss", "sf_cosine", "sf_effective_weight")

#: An empty batch is looked for at every this many steps: looking costs a device synchronization.
_LOOK_EVERY = 50


class Aligner(nn.Module):
    """Projectors, taps and teachers of one policy, and what happens in a training step.

    Its ``state_dict`` holds the projectors, the step counter and small teacher statistics, never a teacher's weights.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.config = plan.config
        self.adapter = plan.adapter
        self.objective = plan.objective
        self.pairs = plan.pairs
        self.hosts = plan.hosts
        self.projectors = nn.ModuleList(plan.projectors)
        ratio = balance_ratio(plan.config.weight)
        self.weight = float(plan.config.weight) if ratio is None else ratio
        self.balance = None if ratio is None else Balance(ratio)
        self.schedule = plan.schedule
        self._factor = 0.0
        self._measuring: int | None = None
        self._looking = False
        self.scale = StepScale(plan.config.grad_accumulation)
        self.joiner = Joiner(plan.adapter, plan.config.attach_loss, self.scale, self._first_trained)
        self.enabled = True
        self.save_callbacks: list[Callable[[Any], None]] = []
        self.steps = 0
        self._check = SelfCheck(enabled=plan.config.self_check)
        self._last: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        self._ended = False
        self.taps = {layer: tap_at(self.adapter, layer) for layer in dict.fromkeys(p.student_layer for p in self.pairs)}
        self.meter = GradientMeter(tuple(self.taps))
        self.monitor = Monitor(
            plan.config.health,
            [
                MonitoredPair(p.student_layer, self.hosts[p.host].teacher.name, p.teacher_layer, not p.future)
                for p in featured(self.pairs, self.pairs)
            ],
            self.adapter.policy,
            self.projectors,
        )
        self._gradients: dict[str, Tensor] = {}
        self._news: dict[str, Tensor] = {}
        self.watches = {name: InputRecorder(point) for name, point in self.adapter.extra_hooks().items()}

    def wrapped_forward(
        self, policy: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the policy's own forward and, in a training step, join the alignment loss to what it returns."""
        trains = policy.training and torch.is_grad_enabled()
        if not (self.enabled or is_distributed()):
            if trains and not is_recompute_forward():
                self.joiner.begin()
                self.steps += 1
            return forward(*args, **kwargs)
        if trains:
            self._open_step()
        if not (self.enabled and self.weight and trains):
            self._warn_if_left_in_eval(policy)
            return self._anchored(forward(*args, **kwargs), training=policy.training)
        if not self._factor:
            return self._resting(forward(*args, **kwargs))
        self._ended = False
        for tap in self.hooks:
            tap.arm()
        try:
            output = forward(*args, **kwargs)
            hidden = {layer: tap.take() for layer, tap in self.taps.items()}
            inputs = {name: watch.take() for name, watch in self.watches.items()}
        finally:
            # Before backward, where activation checkpointing fires the hooks again.
            for tap in self.hooks:
                tap.disarm()
        return self._join(args, kwargs, output, hidden, inputs)

    def _open_step(self) -> None:
        """Take in what the last step has measured, and decide what this one is to do; the same on all ranks."""
        if is_recompute_forward():
            return
        self.joiner.begin()
        self._news = {}
        if self._measuring is not None:
            sums = GradientSums.of(self.meter.take(self._device()))
            if self._looking:
                self.monitor.settle(self._measuring, sums)
                self._gradients = self._news = {"sf_grad_ratio": sums.ratio, "sf_grad_cosine": sums.cosine}
            if self.balance is not None:
                self.balance.update(sums)
            if self.schedule.watches_at(self._measuring):
                self.schedule.observe(self._measuring, float(sums.cosine))
        self._factor = self.schedule.factor(self.step) if self.weight else 0.0
        self._looking = bool(self._factor) and self.monitor.due(self.step)
        if self._looking:
            self.monitor.begin(self.step)
        watching = self.balance is not None or self._looking or self.schedule.watches_at(self.step)
        wanted = self._factor and watching
        self._measuring = self.step if wanted else None
        if self.enabled and self._factor:
            refuse_transforms(type(self.adapter.policy).__name__)

    def weight_now(self) -> Tensor:
        """``()``: the weight of the coming step, before its schedule."""
        return torch.tensor(self.weight) if self.balance is None else self.balance.weight(self._device())

    def _device(self) -> torch.device:
        return next(self.adapter.policy.parameters()).device

    @property
    def step(self) -> int:
        """The schedule's step: training calls of ``forward`` so far, in groups of ``grad_accumulation``."""
        return self.steps // (self.scale.accumulation or 1)

    def _join(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        hidden: Mapping[StudentLayer, Captured],
        inputs: Mapping[str, tuple[Any, ...]],
    ) -> Any:
        bound = _signature(type(self.adapter.policy).forward).bind(self.adapter.policy, *args, **kwargs)
        bound.apply_defaults()
        call = ForwardCall(bound.arguments, output, inputs, tuple(hidden))
        loss = self.joiner.loss_in(output)
        share = self.scale.share_of_the_step({**bound.arguments, **kwargs})
        weight = self._factor * self.weight_now()
        if self._measuring is not None:
            hidden = self.meter.branches(hidden, weight)
        with self.meter.paused():  # the checks of the first batch send gradients of their own
            result: Alignment = self(call, hidden)
        self._check.see(result.loss)
        self._count_step()
        # A plain number where there is one: autograd would keep a tensor for backward.
        factor = self._factor * self.weight if self.balance is None else beside(weight, result.loss)
        self._last = {
            **({} if loss is None else {"action_loss": loss.detach().float().mean()}),
            "sf_loss": result.loss.detach().mean(),
            "sf_cosine": result.cosine,
            "sf_effective_weight": weight,
            "sf_valid_token_fraction": result.valid,
        }
        if self.steps % _LOOK_EVERY == 1:
            self._warn_if_nothing_valid(result.valid)
            self._warn_if_nothing_to_balance()
        logs = {key: self._last[key] for key in _LOGGED if key in self._last} | self._news
        output = self.joiner.into(call.output, loss, factor * share * result.loss, logs)
        joined = self.joiner.loss_in(output)
        if joined is not None and not is_recompute_forward() and self._check.first_loss():
            warn_if_sum_reduction(joined, self._warn_once)
        return output

    def _count_step(self) -> bool:
        """Count a training forward, unless it has been counted before."""
        # Also where nothing is aligned: ranks that sit out, and the steps of a schedule, must not fall behind.
        fresh = not is_recompute_forward()
        self.steps += fresh
        return fresh

    def _resting(self, output: Any) -> Any:
        """A training step at which the schedule's factor is 0: no teacher runs, and the logs say so."""
        if self.schedule.over(self.step):
            self._free_teachers()
        output = self._anchored(output, training=True)
        loss = self.joiner.loss_in(output)
        if loss is None:
            return output
        action = loss.detach().float().mean()
        logs = {"action_loss": action, "sf_effective_weight": torch.tensor(0.0)}
        return self.adapter.with_loss(output, loss, logs)

    def _free_teachers(self) -> None:
        """The weight is 0 for good: the memory of the teachers is of use to somebody else."""
        if self._ended:
            return
        self._ended = True
        for host in self.hosts:
            host.release()
        log_info(
            f"At step {self.step} the schedule ({self.schedule.describe()}) has ended: nothing is aligned any more."
        )

    def _first_trained(self) -> Tensor | None:
        return next((parameter for parameter in self.projectors.parameters() if parameter.requires_grad), None)

    @property
    def hooks(self) -> tuple[Tap | InputRecorder, ...]:
        """All that was hooked onto the policy's modules."""
        return (*self.taps.values(), *self.watches.values())

    def forward(self, call: ForwardCall, hidden: Mapping[StudentLayer, Captured]) -> Alignment:
        """Align one batch: the sum (or mean) over pairs of ``pair weight * objective``, for each sample."""
        first = not is_recompute_forward()
        if first:
            self._check.before(self.projectors)
        if any(pair.reads_attention for pair in self.pairs):
            refuse_shards(self.adapter.policy)
        with torch.no_grad():
            views = self.adapter.views(call)
        students = {layer: tokens_at(self.adapter, layer, state, views) for layer, state in hidden.items()}
        if first and self._check.first_batch:
            check_views(views)
            if is_sharded(self) or is_sharded(self.adapter.policy):
                refuse_cast(self.projectors)
                self._check.give_up("under FSDP2 the check's own backward pass would scatter the parameters again.")
            elif any(bool(student.mask.any()) for student in students.values()):
                off = [layer for layer, tap in self.taps.items() if tap.without_gradient]
                self._check.tokens(students, self.projectors, self.adapter.unfreeze_hint(), off)
        targets = self._targets(call, views, students)
        results = [
            align(
                students[pair.student_layer], target, projector, pair.objective,
                recompute=self.recompute, keep_maps=self._looking,
            )
            for pair, target, projector in zip(self.pairs, targets, self._projectors(), strict=True)
        ]  # fmt: skip
        if first and self._looking:
            maps = [result.compared for result in results if result.compared]
            self.monitor.look(students, maps, views.names, reached=self._check.reaches_policy)
        losses = torch.stack([pair.weight * result.loss for pair, result in zip(self.pairs, results, strict=True)])
        loss = losses.mean(0) if self.config.pair_reduction == "mean" else losses.sum(0)
        cosine = torch.stack([result.cosine for result in featured(self.pairs, results) or results])
        return Alignment(loss, cosine.mean(), torch.stack([result.valid for result in results]).mean())

    @property
    def recompute(self) -> Recompute:
        """What backward makes again instead of keeping it."""
        if self.config.recompute == "auto":
            return "selective" if len(self.pairs) > 1 else "none"
        return self.config.recompute

    def _targets(
        self, call: ForwardCall, views: Views, students: Mapping[StudentLayer, FeatureMap]
    ) -> list[FeatureMap]:
        """One target for each pair, from one run of each teacher on each frame that is asked for."""
        explain = functools.partial(self.adapter.explain_missing, call=call)
        found: dict[tuple[int, int, bool, int], FeatureMap] = {}
        for index, future in dict.fromkeys((pair.host, pair.future) for pair in self.pairs):
            mine = [pair for pair in self.pairs if (pair.host, pair.future) == (index, future)]
            layers = sorted({pair.teacher_layer for pair in mine if not pair.reads_attention})
            blocks = sorted({pair.teacher_layer for pair in mine if pair.reads_attention})
            with torch.no_grad():
                seen = self.adapter.future_views(call, future) if future else views
            maps = self.hosts[index].features(seen, layers, students[mine[0].student_layer].grid, explain, blocks)
            names = [*((False, layer) for layer in layers), *((True, block) for block in blocks)]
            found.update({(index, future, *name): one for name, one in zip(names, maps, strict=True)})
        return [found[pair.host, pair.future, pair.reads_attention, pair.teacher_layer] for pair in self.pairs]

    def _projectors(self) -> Iterable[Projector]:
        return self.projectors  # type: ignore[return-value]

    def _anchored(self, output: Any, *, training: bool) -> Any:
        """With several processes, keep the projector in the graph of a training step that does not align.

        DDP otherwise stops with "expected to have finished reduction", or hangs when only some ranks skip. Adding
        zero times a parameter leaves the loss bit-identical. A single process needs none of it.
        """
        if not (training and torch.is_grad_enabled()):
            return output
        ended = self.schedule.over(self.step)
        if not (self._count_step() and is_distributed()):
            return output
        if not ended:
            for index, _ in dict.fromkeys((pair.host, pair.future) for pair in self.pairs):
                self.hosts[index].participate_without_data()
            for pair in self.pairs:
                pair.objective.participate_without_data()
        if is_sharded(self) or is_sharded(self.adapter.policy):
            return output  # FSDP2 minds no projector that all ranks leave out
        return self.joiner.anchor(output, self._zero)

    def _zero(self, like: Tensor) -> Tensor:
        """0 times the projector, beside a loss."""
        parts = (p.flatten()[:1].sum() * 0.0 for p in self.projectors.parameters())
        return sum(parts, torch.zeros_like(like))

    def _warn_if_left_in_eval(self, policy: nn.Module) -> None:
        forgotten = not policy.training and self.enabled and self.weight and torch.is_grad_enabled()
        if forgotten and any(parameter.requires_grad for parameter in policy.parameters()):
            self._warn_once(left_in_eval(type(policy).__name__))

    def _warn_if_nothing_valid(self, valid: Tensor) -> None:
        if not bool(valid > 0):
            self._warn_once(NOTHING_VALID)

    def _warn_if_nothing_to_balance(self) -> None:
        if self.balance is not None and self.steps > 1 and not self.balance.measured:
            self._warn_once(nothing_to_balance(self.config.weight, self.balance.ratio))

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=4)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Aligner:
        """Follow the policy to another device, but stay in float32 when it is cast."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}step"] = torch.tensor(self.steps)
        # The same keys at every step: an EMA of the policy goes through its state and ours side by side.
        if self.balance is not None:
            destination[f"{prefix}balance.log"] = self.balance.log.detach().clone()
        for key, figure in self.schedule.state().items():
            destination[f"{prefix}schedule.{key}"] = torch.tensor(figure, dtype=torch.float64)
        if self.balance is not None or self.schedule.state():
            table = self.meter.table
            destination[f"{prefix}measured"] = torch.zeros(len(self.taps), 4) if table is None else table.clone()
        for index, host in enumerate(self.hosts):
            for key, value in host.teacher.state().items():
                destination[f"{prefix}teachers.{index}.{key}"] = value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        ours = {key for key in state_dict if key.startswith(prefix)}
        if not ours:
            # A plain checkpoint of the policy: the children then load what they already hold.
            state_dict.update(self.state_dict(prefix=prefix))
            warnings.warn(
                "sfkit: the checkpoint has no projector; the present one was kept.", SfkitWarning, stacklevel=2
            )
        self.steps = int(state_dict.pop(f"{prefix}step", self.steps))
        # What the step before the save has measured is taken in by the step after it.
        table = state_dict.pop(f"{prefix}measured", None)
        self.meter.table = None if table is None else table.clone().to(self._device())
        self._measuring = None if table is None else (self.steps - 1) // (self.scale.accumulation or 1)
        log = state_dict.pop(f"{prefix}balance.log", None)
        if self.balance is not None and log is not None:
            self.balance.log = log.detach().clone().float()
        own = f"{prefix}health."
        references = {key[len(own) :]: state_dict.pop(key) for key in [*state_dict] if key.startswith(own)}
        self.monitor.load_state(references)
        own = f"{prefix}schedule."
        kept = [key for key in state_dict if key.startswith(own)]
        self.schedule.load_state({key[len(own) :]: float(state_dict.pop(key)) for key in kept})
        for index, host in enumerate(self.hosts):
            own = f"{prefix}teachers.{index}."
            state = {key[len(own) :]: state_dict.pop(key) for key in ours if key.startswith(own)}
            if state:
                host.teacher.load_state(state)
        for key in [key for key in state_dict if key.startswith(f"{prefix}teachers.")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


@functools.cache
def leave_to_python() -> None:
    """Keep torch.compile out of the alignment, which is Python by nature; the policy's own forward is compiled.

    Called at wrap time and not on import: it pulls in torch._dynamo, as building an optimizer does anyway.
    """
    disable: Any = torch.compiler.disable
    disable(Aligner.wrapped_forward, recursive=False)
    Aligner._open_step = disable(Aligner._open_step)  # type: ignore[method-assign]
    Aligner._join = disable(Aligner._join)  # type: ignore[method-assign]
    Aligner._count_step = disable(Aligner._count_step)  # type: ignore[method-assign]


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)
