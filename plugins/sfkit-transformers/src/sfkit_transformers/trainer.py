"""What transformers' Trainer must tell sfkit, and what sfkit tells its log."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn
from transformers import TrainerCallback

from sfkit import SpatialForcing
from sfkit.errors import WrapError


class SpatialForcingCallback(TrainerCallback):  # type: ignore[misc]
    """For ``Trainer(model=policy, callbacks=[SpatialForcingCallback(policy)])`` around a wrapped policy.

    It tells sfkit how many batches make an optimizer step, and whether the trainer multiplies the loss by the number of
    processes (``average_tokens_across_devices``): transformers' models divide their loss by the items of all of them,
    and the alignment loss must follow. To each log it adds ``sf_loss``, ``sf_cosine``, ``sf_effective_weight`` and
    ``sf_valid_token_fraction``.

    Args:
        policy: What :meth:`sfkit.SpatialForcing.wrap` returned.

    Raises:
        WrapError: It is not wrapped.
    """

    def __init__(self, policy: nn.Module) -> None:
        handle = SpatialForcing.of(policy)
        if handle is None:
            raise WrapError(f"{type(policy).__name__} is not wrapped by sfkit.", "Call SpatialForcing.wrap first.")
        self.handle = handle

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.handle.grad_accumulation = args.gradient_accumulation_steps
        multiplies = getattr(args, "average_tokens_across_devices", False)
        self.handle.scale_for_processes(args.world_size if multiplies else 1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: MutableMapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs is None or "loss" not in logs:
            return  # an evaluation, or the summary of the run
        figures = {key: value for key, value in self.handle.metrics().items() if key != "action_loss"}
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)
