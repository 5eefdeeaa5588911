"""Callback for transformers' Trainer: gradient accumulation, loss scale, and logs."""

from __future__ import annotations

from collections.abc import MutableMapping

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sfkit import SpatialForcing
from sfkit.errors import WrapError


class SpatialForcingCallback(TrainerCallback):  # type: ignore[misc]
    """Callback for a wrapped policy: ``Trainer(model=policy, callbacks=[SpatialForcingCallback(policy)])``.

    It passes two settings of the Trainer to sfkit: the number of batches per optimizer step, and whether the Trainer
    multiplies the loss by the number of processes (``average_tokens_across_devices``). With the latter, transformers'
    models divide their loss by the items of all processes, so the alignment loss is divided by the number of processes.
    Each log gains ``sf_loss``, ``sf_cosine``, ``sf_effective_weight`` and ``sf_valid_token_fraction``.

    Args:
        policy: The result of :meth:`sfkit.SpatialForcing.wrap`.

    Raises:
        WrapError: The policy is not wrapped.
    """

    def __init__(self, policy: nn.Module) -> None:
        handle = SpatialForcing.of(policy)
        if handle is None:
            raise WrapError(f"{type(policy).__name__} is not wrapped by sfkit.", "Call SpatialForcing.wrap first.")
        self.handle = handle

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.handle.grad_accumulation = args.gradient_accumulation_steps
        multiplies = getattr(args, "average_tokens_across_devices", False)
        self.handle.scale_for_processes(args.world_size if multiplies else 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: MutableMapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        # Evaluations and the summary of a run are logged too, without a training loss.
        if logs is None or "loss" not in logs:
            return
        figures = {key: value for key, value in self.handle.metrics().items() if key != "action_loss"}
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)
