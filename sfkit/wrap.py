"""SpatialForcing: the one call that makes a policy train with an alignment loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sfkit.config import AttachLoss, HealthOptions, SpatialForcingConfig, StudentLayer
from sfkit.errors import GradientError, WrapError, log_info, log_warning
from sfkit.factory.components import ComponentLike
from sfkit.factory.resolve import adapter_for, find_preset, with_defaults
from sfkit.health.monitor import Monitor
from sfkit.health.report import Health
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.presets import Preset
from sfkit.projectors.base import Projector
from sfkit.saving import checkpoint
from sfkit.saving.trust import admit
from sfkit.schedules.base import Schedule
from sfkit.teachers.base import Teacher, license_note
from sfkit.training.attach import attach, detach, export, handle_of, refuse_unwrappable
from sfkit.training.loss_scale import Scaler
from sfkit.training.plan import make_plan
from sfkit.training.status import Status, describe
from sfkit.training.step import Aligner, disable_compile
from sfkit.transforms.base import Transform
from sfkit.utils.runtime import float32_by_default
from sfkit.views.cameras import CameraRig, require_rig

Policy = TypeVar("Policy", bound=nn.Module)


class SpatialForcing(Aligner):
    """Spatial forcing of one policy. Made by :meth:`wrap`, found at ``policy.spatial_forcing``."""

    monitor: Monitor

    @staticmethod
    def wrap(
        policy: Policy,
        teacher: ComponentLike | Teacher | None = None,
        *,
        student_layer: StudentLayer | None = None,
        teacher_layer: int | None = None,
        preset: str | Preset | None = None,
        weight: float | str | None = None,
        schedule: ComponentLike | Schedule | Sequence[ComponentLike | Schedule] | None = None,
        objective: ComponentLike | Objective | None = None,
        projector: ComponentLike | Projector | None = None,
        transforms: Sequence[ComponentLike | Transform] | None = None,
        pairs: Sequence[object] | None = None,
        shared_projector: bool | None = None,
        pair_reduction: Literal["sum", "mean"] | None = None,
        adapter: ComponentLike | PolicyAdapter | None = None,
        cameras: CameraRig | None = None,
        attach_loss: AttachLoss = "auto",
        grad_accumulation: int | None = None,
        recompute: Literal["auto", "none", "selective", "full"] = "auto",
        seed: int = 0,
        health: HealthOptions | Mapping[str, object] | None = None,
        self_check: bool = True,
        verbose: bool = True,
    ) -> Policy:
        """Make ``policy`` train with ``action loss + weight * alignment loss``. Returns the same object.

        Other forwards (``eval()``, ``no_grad``, :meth:`disabled`, weight 0) stay bit-identical, and no teacher runs in
        them. Build the optimizer after this call.

        Args:
            policy: The policy; inside PEFT, the PeftModel. Changed in place.
            teacher: A registered name, a name with options (``("geometry", {"frame": "world"})``), or an instance.
            student_layer: The residual stream after this many blocks, or ``"encoder"``: the output of the vision tower.
                None: the adapter's default.
            teacher_layer: The teacher's layer, 1 to its number of layers. None: the teacher's default.
            preset: A published method (``sfkit presets`` lists them). It sets the arguments from ``weight`` to
                ``pair_reduction``, ``teacher``, ``student_layer``, ``teacher_layer`` and the adapter's options.
                Explicit arguments override the preset.
            weight: Weight of the alignment loss, 0 or more (default 0.5); or ``"balance:0.1"``: the weight at which the
                alignment gradient at the tapped tokens has that ratio to the action gradient.
            schedule: Factors on the weight by step: a name (``"stop:5000"``; default ``"constant"``), a name with
                options (``("cosine", {"steps": 10000})``), an instance, or a list, whose factors multiply. A step is
                one training call of ``forward``, or a group of ``grad_accumulation`` calls.
            objective: Name, name with options, or instance; default ``"cosine"``.
            projector: Name, name with options, or (for a single pair) an instance; default ``"mlp"``.
            transforms: Steps from the teacher's features to the target, in order: names, names with options, or (for a
                single pair) instances. They run on the student's grid; with ``"resample"`` among them, those before it
                run on the teacher's grid.
            pairs: Several pairs instead of ``teacher``, ``student_layer`` and ``teacher_layer``: ``(student_layer,
                teacher, teacher_layer, weight)`` or mappings with those keys; the last two may be missing. A mapping
                may also hold ``objective``, ``projector`` and ``transforms`` of its own, and ``future``: the teacher
                sees the frame that many steps ahead. Each teacher runs once for all pairs of one frame.
            shared_projector: One projector for all pairs (default False). ``"nested"`` then grows from pair to pair.
            pair_reduction: Add the weighted losses of the pairs (default), or average them.
            adapter: Needed if no adapter recognizes the policy's class, or to give options.
            cameras: Calibration and poses, for teachers that need geometry.
            attach_loss: How the alignment loss reaches what the loop differentiates: ``"return"`` (added to the loss
                that forward returns), ``"backward"`` (injected through forward's outputs in the backward pass),
                ``"manual"`` (by ``loss = policy.spatial_forcing.add(loss)``), or ``"auto"``: what fits the policy.
            grad_accumulation: Batches for each optimizer step. Needed with ``num_items_in_batch`` (HF Trainer), with
                ``attach_loss="backward"`` where the loop divides its loss, and for schedules in optimizer steps.
            recompute: What backward recomputes instead of keeping it; gradients are equal to the last bit.
                ``"selective"``: masks, norms and activations. ``"full"``: projections and comparisons too, for a third
                more of the alignment time. ``"auto"``: ``"selective"`` for several pairs, ``"none"`` for one.
            seed: Seed of the projector's own generator; the global random state is left alone.
            health: Options of the health monitor, as ``{"every": 100}``; see :meth:`health`.
            self_check: Verify on the first batches that alignment really trains.
            verbose: Log the loss in one line, and print it where logging has no handler.

        Raises:
            WrapError: The object is wrapped, compiled, or inside DDP, FSDP, DeepSpeed or accelerate already.
            AdapterError: No adapter handles the policy's class.
            ConfigError: A name, an option or a student layer is not valid, or the preset does not fit the policy.
            GradientError: The policy has no trainable parameter.
        """
        refuse_unwrappable(policy)
        trainable = next((parameter for parameter in policy.parameters() if parameter.requires_grad), None)
        if trainable is None:
            raise GradientError(
                f"{type(policy).__name__} has no trainable parameter.",
                "Unfreeze it, or put LoRA on it, before the wrap.",
            )
        disable_compile()
        found = find_preset(preset)
        bound = adapter_for(policy, adapter, found)
        given = {
            "teacher": teacher, "student_layer": student_layer, "teacher_layer": teacher_layer, "weight": weight,
            "schedule": schedule, "objective": objective, "projector": projector, "transforms": transforms,
            "pairs": pairs, "shared_projector": shared_projector, "pair_reduction": pair_reduction,
            "attach_loss": attach_loss, "grad_accumulation": grad_accumulation, "recompute": recompute, "seed": seed,
            "health": health, "self_check": self_check,
        }  # fmt: skip
        arguments = with_defaults(found, bound, given)
        if cameras is not None:
            bound.cameras = require_rig(cameras)
        with float32_by_default():
            handle = SpatialForcing(make_plan(bound, arguments))
        handle.monitor = Monitor(handle.config.health, handle)
        handle.observers.append(handle.monitor)
        handle.to(trainable.device)
        handle.train(policy.training)
        attach(policy, handle)
        if verbose:
            log_info(handle.describe())
        for limited in {one.name: one for one in handle.teachers if one.noncommercial}.values():
            log_warning(license_note(limited.identity))
        return policy

    @staticmethod
    def unwrap(policy: Policy) -> Policy:
        """Undo :meth:`wrap`: the same object, with its own class, without hooks, bit-identical in behavior.

        Raises:
            WrapError: The object is not what :meth:`wrap` returned.
        """
        detach(policy).taps.remove()
        return policy

    @staticmethod
    def of(policy: nn.Module) -> SpatialForcing | None:
        """The handle of a wrapped policy, also inside DDP, FSDP, compile or PEFT; None if it is not wrapped."""
        return next((module for module in policy.modules() if isinstance(module, SpatialForcing)), None)

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

    def add(self, loss: Tensor) -> Tensor:
        """``loss`` with the alignment loss of the forward that it was computed from: always exact.

        For training loops that compute their loss from what the policy returns. Call it once, before the loss is
        scaled, divided and differentiated. Where nothing is aligned it returns ``loss``.

        Args:
            loss: ``()``, ``(b,)`` or ``(b, ...)``.

        Raises:
            LossError: It has the alignment loss already, or was not computed from the last forward.
        """
        total = self.loss_paths.add(loss)
        if total is not loss:
            self._last["action_loss"] = loss.detach().float().mean()
        return total

    @property
    def grad_accumulation(self) -> int | None:
        """Batches for each optimizer step; None: not known."""
        return self.scale.accumulation

    @grad_accumulation.setter
    def grad_accumulation(self, batches: int | None) -> None:
        settings = {**self.config.model_dump(), "grad_accumulation": batches}
        self.config = SpatialForcingConfig.parse("SpatialForcing", settings)
        self.scale.accumulation = batches

    @property
    def scaler(self) -> Scaler | None:
        """The loop's ``GradScaler``, which ``attach_loss="backward"`` must follow; set it where the loop has one."""
        return self.scale.scaler

    @scaler.setter
    def scaler(self, scaler: Scaler | None) -> None:
        self.scale.scaler = scaler

    def scale_for_processes(self, processes: int) -> None:
        """Say by how many processes the trainer multiplies a loss made with ``num_items_in_batch``; 1: by none."""
        self.scale.processes = processes

    def restart_schedule(self) -> None:
        """Count steps from 0 again, as a new run that starts from a saved projector does."""
        self.steps = 0

    def warn_with(self, warn: Callable[[str], None]) -> None:
        """Send the health monitor's warnings to ``warn``, such as the ``logger.warning`` of a trainer."""
        self.monitor.warn = warn

    def after_save(self, callback: Callable[[Path], None]) -> None:
        """Call ``callback`` with the folder after each ``save_pretrained`` that has written ``spatial_forcing/``."""
        self.save_callbacks.append(callback)

    @staticmethod
    def export(policy: nn.Module, directory: str | Path) -> None:
        """Write what the policy's own ``save_pretrained`` would write, and nothing of sfkit.

        Raises:
            WrapError: The object is not what :meth:`wrap` returned, or has no ``save_pretrained``.
        """
        export(policy, directory)

    def save(self, directory: str | Path, gathered: Mapping[str, Tensor] | None = None) -> bool:
        """Write ``directory/spatial_forcing/`` (config and projector), as ``policy.save_pretrained`` does by itself.

        Under FSDP2 all processes call it, and the first one writes; one that gives ``gathered`` needs no others.
        Returns whether this process wrote.

        Args:
            directory: Where the policy's own files are.
            gathered: The whole state of the policy, for FSDP2 alone.
        """
        state = self.state_dict()
        scattered = checkpoint.is_scattered(state)
        first = True
        if scattered and gathered is not None:
            state, first = checkpoint.part_of(gathered), bool(gathered)
        elif scattered:
            state, first = checkpoint.gather(state), not torch.distributed.get_rank()
        if not (first and self.adapter.writes_checkpoints()):
            return False
        references = {f"health.{key}": value for key, value in self.monitor.state().items()}
        if scattered:  # of one process's part
            references.pop("health.projector", None)
        checkpoint.save(directory, self.config, {**state, **references}, self.teachers)
        return True

    @staticmethod
    def from_pretrained(
        policy: Policy,
        source: str | Path,
        *,
        revision: str | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
        **changes: Any,
    ) -> Policy:
        """Wrap ``policy`` as a saved run was wrapped, and resume its projector, step counter and statistics.

        A file never permits code. It names other files and repositories only where ``source`` is a local folder, which
        is logged; what a repository of the Hub names is repeated in ``options``. The error prints what to write.

        Args:
            policy: The policy, loaded by its own framework first.
            source: A local folder or a Hub repository that contains ``spatial_forcing/``.
            revision: Of the repository.
            options: Options of saved components, by saved name: ``{"vggt": {"weights": "vggt.safetensors"}}``.
            changes: Arguments of :meth:`wrap`: ``cameras`` and instances again, or how to weight and compute it.

        Raises:
            CheckpointError: Files are missing, damaged, or do not fit; or this is another run than the saved one.
            TrustError: The saved configuration asks for what only the caller may give.
        """
        folder = checkpoint.locate(source, revision)
        record = checkpoint.read(folder)
        saved = {key: value for key, value in record.arguments.items() if key not in changes}
        saved = admit(saved, checkpoint.origin_of(source, folder, record), {} if options is None else options)
        policy = SpatialForcing.wrap(policy, **saved, **changes)
        handle = handle_of(policy)
        try:
            checkpoint.load_into(handle, folder, record, changes, options)
        except Exception:
            SpatialForcing.unwrap(policy)
            raise
        before, now = record.config.grad_accumulation or 1, handle.grad_accumulation or 1
        if now != before:  # the schedule's step stays what it was
            handle.steps = handle.steps // before * now
        return policy

    @property
    def teachers(self) -> list[Teacher]:
        """The teachers, each once."""
        return [runner.teacher for runner in self.runners]

    def describe(self) -> str:
        """The loss in one line."""
        return describe(self)

    def __repr__(self) -> str:
        return f"SpatialForcing({self.describe()})"

    def __dir__(self) -> list[str]:
        """Public names of this class alone, without the many of ``nn.Module``."""
        return sorted(name for name in vars(SpatialForcing) if not name.startswith("_"))

    def metrics(self) -> dict[str, float]:
        """Figures of the last aligned step; empty before the first. Reading them waits for the device.

        ``action_loss``, ``sf_loss`` (unweighted), ``sf_cosine``, ``sf_effective_weight``, ``sf_valid_token_fraction``;
        of the last measured step, ``sf_grad_ratio`` and ``sf_grad_cosine``, see :meth:`health`.
        """
        if not self._last:
            return {}
        device = self._last["sf_loss"].device
        found = {**self._last, **self.weighting.gradients}
        return dict(zip(found, torch.stack([v.to(device) for v in found.values()]).tolist(), strict=True))

    def health(self) -> Health:
        """Whether alignment helps or hurts: ``print`` it, or read its fields. Measured at one step of many.

        Reading it waits for the device. With several processes it is the last measurement that a step has finished.
        """
        with float32_by_default():
            return self.monitor.latest()

    def status(self) -> Status:
        """The state of the alignment: ``print`` it, or read its fields."""
        return Status.of(self, self.metrics())
