"""SpatialForcing: the one call that makes a policy train with an alignment loss."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sfkit import checkpoint
from sfkit.alignment.checks import SelfCheck, check_views
from sfkit.alignment.host import TeacherHost
from sfkit.alignment.status import PairStatus, Status
from sfkit.alignment.step import Alignment, align
from sfkit.alignment.tap import Tap
from sfkit.attach import HANDLE, attach, base_of, detach, detached, handle_of, refuse_unwrappable
from sfkit.building import Named, build_adapter
from sfkit.cameras import CameraRig
from sfkit.config import SpatialForcingConfig
from sfkit.errors import LossError, SfkitWarning, WrapError
from sfkit.objectives.base import Objective
from sfkit.pairing import Pair, Plan, make_plan
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.policies.loss import add_per_sample
from sfkit.projectors.base import Projector
from sfkit.teachers.base import Teacher
from sfkit.types import FeatureMap, Views

logger = logging.getLogger("sfkit")

Policy = TypeVar("Policy", bound=nn.Module)

#: An empty batch is looked for at every this many steps: looking costs a device synchronisation.
_LOOK_EVERY = 50


class SpatialForcing(nn.Module):
    """The alignment beside a policy: projectors, taps and teachers. Made by :meth:`wrap`, found at
    ``policy.spatial_forcing``.

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
        self.weight = plan.config.weight
        self.enabled = True
        self.steps = 0
        self._check = SelfCheck(enabled=plan.config.self_check)
        self._last: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        self.taps = {depth: Tap(depth, self.adapter.tap(depth)) for depth in sorted({p.depth for p in self.pairs})}

    # ---------------------------------------------------------------- attaching

    @staticmethod
    def wrap(
        policy: Policy,
        teacher: Named | Teacher | None = None,
        *,
        depth: int | None = None,
        layer: int | None = None,
        weight: float = 0.5,
        objective: Named | Objective = "cosine",
        projector: Named | Projector = "mlp",
        pairs: Sequence[Any] | None = None,
        adapter: Named | PolicyAdapter | None = None,
        cameras: CameraRig | None = None,
        seed: int = 0,
        self_check: bool = True,
    ) -> Policy:
        """Make ``policy`` train with ``action loss + weight * alignment loss``. Returns the same object.

        Only training forwards change: in ``eval()``, under ``no_grad`` or :meth:`disabled`, and at weight 0, outputs
        are bit-identical and no teacher runs. Build the optimizer after this call.

        Args:
            policy: The policy; inside PEFT, the PeftModel. Changed in place.
            teacher: A registered name, a name with options (``("geometry", {"frame": "world"})``), or an instance.
            depth: Residual stream after this many blocks; None takes the adapter's default.
            layer: The teacher's layer, 1 to its number of layers; None takes the teacher's default.
            weight: Weight of the alignment loss.
            objective: Name, name with options, or instance.
            projector: Name, name with options, or (for a single pair) an instance.
            pairs: Instead of ``teacher``, ``depth`` and ``layer``: several ``(depth, teacher, layer, weight)`` tuples
                or mappings with those keys; ``layer`` and ``weight`` may be left out.
            adapter: Only needed when the policy's class is not recognised, or to give options.
            cameras: Calibration and poses, for teachers that need geometry.
            seed: Seed of the projector's own generator; the global random state is left alone.
            self_check: Verify on the first batches that alignment really trains.

        Raises:
            WrapError: The object is wrapped, compiled, or inside DDP, FSDP, DeepSpeed or accelerate already.
            AdapterError: No adapter handles the policy's class.
            ConfigError: A name, an option or a depth is not valid.
            GradientError: The policy has no trainable parameter.
        """
        refuse_unwrappable(policy)
        plan = make_plan(
            build_adapter(policy, adapter),
            teacher=teacher, depth=depth, layer=layer, weight=weight, objective=objective,
            projector=projector, pairs=pairs, seed=seed, self_check=self_check,
        )  # fmt: skip
        if cameras is not None:
            plan.adapter.cameras = cameras
        handle = SpatialForcing(plan)
        parameter = next((p for p in policy.parameters() if p.requires_grad), None)
        handle.to((parameter if parameter is not None else torch.empty(0)).device)
        handle.train(policy.training)
        attach(policy, handle)
        logger.info("sfkit: %s", handle.describe())
        return policy

    @staticmethod
    def unwrap(policy: Policy) -> Policy:
        """Undo :meth:`wrap`: the same object, with its own class, without hooks, bit-identical in behaviour.

        Raises:
            WrapError: The object is not what :meth:`wrap` returned.
        """
        handle = detach(policy)
        for tap in handle.taps.values():
            tap.remove()
        return policy

    @staticmethod
    def of(policy: nn.Module) -> SpatialForcing | None:
        """The handle of a wrapped policy, also inside DDP, FSDP, compile or PEFT; None if it is not wrapped."""
        for module in policy.modules():
            if isinstance(module, SpatialForcing):
                return module
        return None

    @staticmethod
    @contextmanager
    def disabled(policy: nn.Module) -> Iterator[None]:
        """Within the block the policy behaves as if it were not wrapped."""
        handle = SpatialForcing.of(policy)
        if handle is None:
            raise WrapError(f"{type(policy).__name__} is not wrapped by sfkit.")
        before, handle.enabled = handle.enabled, False
        try:
            yield
        finally:
            handle.enabled = before

    # ---------------------------------------------------------------- saving

    @staticmethod
    def export(policy: nn.Module, directory: str | Path) -> None:
        """Write what the policy's own framework would write, and nothing of sfkit."""
        if base_of(policy) is None:
            raise WrapError(f"{type(policy).__name__} is not wrapped by sfkit.")
        with detached(policy):
            policy.save_pretrained(directory)  # type: ignore[operator]

    def save(self, directory: str | Path) -> None:
        """Write ``directory/spatial_forcing/`` (config and projector), as ``policy.save_pretrained`` does by itself."""
        checkpoint.save(directory, self.config, self.state_dict(), [host.teacher for host in self.hosts])

    @staticmethod
    def from_pretrained(policy: Policy, source: str | Path, *, revision: str | None = None, **changes: Any) -> Policy:
        """Wrap ``policy`` as a saved run was wrapped, and resume its projector, step counter and statistics.

        Args:
            policy: The policy, loaded by its own framework first.
            source: A local folder or a Hub repository that contains ``spatial_forcing/``.
            revision: Of the repository.
            changes: Arguments of :meth:`wrap` that override what was saved (``cameras`` is not saved: pass it again).

        Raises:
            CheckpointError: Files are missing, damaged, or do not fit.
        """
        folder = checkpoint.locate(source, revision)
        config = checkpoint.read_config(folder)
        policy = SpatialForcing.wrap(policy, **{**checkpoint.wrap_arguments(config), **changes})
        try:
            checkpoint.load_into(handle_of(policy), folder)
        except Exception:
            SpatialForcing.unwrap(policy)
            raise
        return policy

    # ---------------------------------------------------------------- one training step

    def around(
        self, policy: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the policy's own forward and, in a training step, join the alignment loss to what it returns."""
        if not (self.enabled and self.weight and policy.training and torch.is_grad_enabled()):
            self._warn_if_left_in_eval(policy)
            return self._anchored(forward(*args, **kwargs), training=policy.training)
        for tap in self.taps.values():
            tap.arm()
        try:
            output = forward(*args, **kwargs)
            hidden = {depth: tap.take() for depth, tap in self.taps.items()}
        finally:
            # Before backward, where activation checkpointing fires the taps again.
            for tap in self.taps.values():
                tap.disarm()
        return self._join(ForwardCall(self._bind(args, kwargs), output), hidden)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        bound = _signature(type(self.adapter.policy)).bind(self.adapter.policy, *args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _join(self, call: ForwardCall, hidden: Mapping[int, Tensor]) -> Any:
        loss = self.adapter.loss(call.output)
        if loss is None:
            raise LossError(
                f"{type(self.adapter.policy).__name__} returned no loss ({type(call.output).__name__}), "
                "so the alignment loss has nothing to join.",
                "Call it as in training, with targets in the batch.",
            )
        result: Alignment = self(call, hidden)
        self.steps += 1
        joined = add_per_sample(loss, self.weight * result.loss)
        self._last = {
            "action_loss": loss.detach().float().mean(),
            "sf_loss": result.loss.detach().mean(),
            "sf_cosine": result.cosine,
            "sf_weight": torch.tensor(self.weight),
            "valid_tokens": result.valid,
        }
        if self.steps % _LOOK_EVERY == 1:
            self._warn_if_nothing_valid(result.valid)
        return self.adapter.with_loss(call.output, joined, {key: self._last[key] for key in _LOGGED})

    def forward(self, call: ForwardCall, hidden: Mapping[int, Tensor]) -> Alignment:
        """Align one batch: the sum over pairs of ``pair weight * objective``, for each sample."""
        self._check.before(self.projectors)
        with torch.no_grad():
            views = self.adapter.views(call)
        students = {depth: self.adapter.visual_tokens(state, views) for depth, state in hidden.items()}
        if self._check.first_batch:
            check_views(views)
            if any(bool(student.mask.any()) for student in students.values()):
                self._check.tokens(students, self.projectors)
        targets = self._targets(views, students)
        results = [
            align(students[pair.depth], target, projector, self.objective)
            for pair, target, projector in zip(self.pairs, targets, self._projectors(), strict=True)
        ]
        loss = torch.stack([pair.weight * result.loss for pair, result in zip(self.pairs, results, strict=True)]).sum(0)
        cosine = torch.stack([result.cosine for result in results]).mean()
        return Alignment(loss, cosine, torch.stack([result.valid for result in results]).mean())

    def _targets(self, views: Views, students: Mapping[int, FeatureMap]) -> list[FeatureMap]:
        """One target for each pair, from one run of each teacher."""
        found: dict[tuple[int, int], FeatureMap] = {}
        for index, host in enumerate(self.hosts):
            mine = [pair for pair in self.pairs if pair.host == index]
            layers = sorted({pair.layer for pair in mine})
            maps = host.features(views, layers, students[mine[0].depth].grid)
            found.update({(index, layer): features for layer, features in zip(layers, maps, strict=True)})
        return [found[pair.host, pair.layer] for pair in self.pairs]

    def _projectors(self) -> Iterable[Projector]:
        return self.projectors  # type: ignore[return-value]

    def _anchored(self, output: Any, *, training: bool) -> Any:
        """With several processes, keep the projector in the graph of a training step that does not align.

        DDP otherwise stops with "expected to have finished reduction", or hangs when only some ranks skip. Adding
        zero times a parameter leaves the loss bit-identical. A single process needs none of it.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (distributed and training and torch.is_grad_enabled()):
            return output
        loss = self.adapter.loss(output)
        if loss is None or not loss.requires_grad:
            return output
        zero = sum((p.flatten()[:1].sum() * 0.0 for p in self.projectors.parameters()), torch.zeros_like(loss))
        return self.adapter.with_loss(output, loss + zero, {})

    def _warn_if_left_in_eval(self, policy: nn.Module) -> None:
        forgotten = not policy.training and self.enabled and self.weight and torch.is_grad_enabled()
        if forgotten and any(parameter.requires_grad for parameter in policy.parameters()):
            self._warn_once(
                f"{type(policy).__name__} ran with gradients while in eval mode, so nothing is aligned. Call "
                "policy.train() before training (LeRobot's from_pretrained returns policies in eval mode), or use "
                "torch.no_grad() for evaluation."
            )

    def _warn_if_nothing_valid(self, valid: Tensor) -> None:
        if not bool(valid > 0):
            self._warn_once(
                "No visual token of this batch could be aligned: all are masked, as padding, missing cameras or "
                "positions without a valid target (for the geometry teacher: depth of 0, NaN or out of range)."
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=4)

    # ---------------------------------------------------------------- telling

    def describe(self) -> str:
        """The line that is logged at wrap time."""
        terms = []
        for pair in self.pairs:
            teacher = self.hosts[pair.host].teacher
            layer = f"@{pair.layer}" if teacher.num_layers > 1 else ""
            factor = f"{pair.weight:g} × " if pair.weight != 1 else ""  # noqa: RUF001 - the sign for "times"
            terms.append(f"{factor}{self.objective.name}({self.adapter.name}@{pair.depth} → {teacher.name}{layer})")
        inner = " + ".join(terms)
        inner = f"({inner})" if len(terms) > 1 else inner
        licences = ", ".join(sorted({f"{host.teacher.name}: {host.teacher.license}" for host in self.hosts}))
        size = sum(parameter.numel() for parameter in self.projectors.parameters()) / 1e6
        return (
            f"loss = action + {self.weight:g} × {inner}, projector {size:.1f} M parameters, "  # noqa: RUF001
            f"teacher licence {licences}"
        )

    def metrics(self) -> dict[str, float]:
        """``action_loss``, ``sf_loss`` (unweighted), ``sf_cosine``, ``sf_weight`` and ``valid_tokens`` of the last
        aligned step; empty before the first. Reading them waits for the device.
        """
        if not self._last:
            return {}
        device = self._last["sf_loss"].device
        return dict(zip(self._last, torch.stack([v.to(device) for v in self._last.values()]).tolist(), strict=True))

    def status(self) -> Status:
        """What alignment is doing: ``print`` it, or read its fields."""
        return Status(
            policy=type(self.adapter.policy).__name__,
            adapter=self.adapter.name,
            pairs=tuple(self._pair_status(pair) for pair in self.pairs),
            objective=self.objective.name,
            weight=self.weight,
            enabled=self.enabled,
            training=self.training,
            projector_parameters=sum(parameter.numel() for parameter in self.projectors.parameters()),
            steps=self.steps,
            teacher_runs=sum(host.runs for host in self.hosts),
            metrics=self.metrics(),
            reaches_policy=self._check.reaches_policy,
            projector_moved=self._check.projector_moved,
        )

    def _pair_status(self, pair: Pair) -> PairStatus:
        teacher, tap = self.hosts[pair.host].teacher, self.taps[pair.depth]
        return PairStatus(pair.depth, tap.path, teacher.name, pair.layer, teacher.license, pair.weight, tap.fired)

    # ---------------------------------------------------------------- module state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpatialForcing:
        """Follow the policy to another device, but stay in float32 when it is cast."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}step"] = torch.tensor(self.steps)
        for index, host in enumerate(self.hosts):
            for key, value in host.teacher.state().items():
                destination[f"{prefix}teachers.{index}.{key}"] = value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        ours = {key for key in state_dict if key.startswith(prefix)}
        if not ours:
            # A plain checkpoint of the policy: the children then load what they already hold.
            state_dict.update(self.state_dict(prefix=prefix))
            warnings.warn("sfkit: the checkpoint has no projector; the present one was kept.", SfkitWarning, stacklevel=2)
        self.steps = int(state_dict.pop(f"{prefix}step", self.steps))
        for index, host in enumerate(self.hosts):
            own = f"{prefix}teachers.{index}."
            state = {key[len(own) :]: state_dict.pop(key) for key in ours if key.startswith(own)}
            if state:
                host.teacher.load_state(state)
        for key in [key for key in state_dict if key.startswith(f"{prefix}teachers.")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


_LOGGED = ("action_loss", "sf_loss", "sf_cosine", "sf_weight")


@functools.cache
def _signature(cls: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(cls.forward)


__all__ = ["HANDLE", "SpatialForcing"]
