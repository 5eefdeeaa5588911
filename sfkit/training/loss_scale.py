"""The factor by which a training loop multiplies its loss, where the alignment loss must follow."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sfkit.errors import LossError, SfkitWarning
from sfkit.utils.runtime import is_distributed

_ADD = "or write `loss = policy.spatial_forcing.add(loss)` before the loss is scaled or divided: always exact."


class Scaler(Protocol):
    """What multiplies a loop's loss, as torch's ``GradScaler``."""

    def scale(self, outputs: Tensor) -> Tensor:
        """``outputs``, ``(*)``, times the factor."""


class LossScale:
    """What is known of the factor; warns at signs of one that is not known.

    Attributes:
        accumulation: Batches for each optimizer step; None: not known.
        scaler: The loop's ``GradScaler``, or anything like it; None: there is none, or it is not known.
        processes: By how many processes the trainer multiplies a loss that was made with ``num_items_in_batch``, before
            DDP divides by them; None: not known.
    """

    def __init__(self, accumulation: int | None = None, scaler: Scaler | None = None) -> None:
        self.accumulation = accumulation
        self.scaler = scaler
        self.processes: int | None = None
        self._warned: set[str] = set()
        self._last: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        # A copy of the policy is outside the loop; and a GradScaler refuses to be copied in the middle of a step.
        return {**self.__dict__, "scaler": None, "_last": None}

    def gradient(self, device: torch.device) -> Tensor:
        """The gradient ``()`` that reaches ``loss`` when the loop differentiates its scaled and divided loss."""
        one = torch.ones((), dtype=torch.float32, device=device)
        return (one if self.scaler is None else self.scaler.scale(one)) / (self.accumulation or 1)

    def share_of_the_step(self, arguments: Mapping[str, object]) -> float:
        """The share of an optimizer step in this call, where the policy's own loss already accounts for it.

        Handed ``num_items_in_batch``, a model divides its loss by the items of *all* accumulated batches, and HF
        Trainer then divides no further. The alignment loss must follow, or it counts once for each of them. If they
        are the items of all processes (``average_tokens_across_devices``), Trainer multiplies the loss by the number of
        processes, to make up for DDP's mean: the same again.

        Raises:
            LossError: The call has ``num_items_in_batch``, and the number of accumulated batches is not known; or there
                are several processes, and whether the loss is multiplied by their number is not known.
        """
        if arguments.get("num_items_in_batch") is None:
            return 1.0
        if self.processes is None and _world_size() > 1:
            raise LossError(
                "The policy was called with num_items_in_batch in one of several processes. HF Trainer multiplies such "
                "a loss by their number only with average_tokens_across_devices, which sfkit does not know.",
                "Give the trainer sfkit_transformers.SpatialForcingCallback(policy), which sets it.",
            )
        if self.accumulation is None:
            raise LossError(
                "The policy was called with num_items_in_batch, so its loss is already scaled for gradient "
                "accumulation, by a factor that sfkit does not know.",
                "Pass SpatialForcing.wrap(..., grad_accumulation=N), the trainer's gradient_accumulation_steps, or "
                "give the trainer sfkit_transformers.SpatialForcingCallback(policy), which sets it.",
            )
        return 1.0 / (self.accumulation * (self.processes or 1))

    def check_forward(self, device: str) -> None:
        """Warn once where a forward runs in float16, which is trained with a GradScaler, and none is set."""
        if self.scaler is None and _autocast_dtype(device) == torch.float16:
            self._warn(
                "The alignment loss is injected through the outputs of a forward under float16 autocast, and no "
                "GradScaler is set: if the loop scales its loss, alignment is far too weak. Set "
                f"policy.spatial_forcing.scaler = scaler, {_ADD}"
            )

    def check_backward(self, parameter: Tensor | None) -> None:
        """Warn once where gradients are accumulated, and whether the loss is divided for that is not known.

        Args:
            parameter: ``(*)``, one of the projector's: it has a gradient from an earlier backward pass, and no
                optimizer has moved it since, where gradients are accumulated.
        """
        if self.accumulation is not None or parameter is None:
            return
        (task, version), before = (torch._C._current_graph_task_id(), parameter._version), self._last
        self._last = task, version
        if before is not None and parameter.grad is not None and before[0] != task and before[1] == version:
            self._warn(
                "The alignment loss is injected through the outputs of a forward, and gradients of several backward "
                "passes are accumulated: if the loop divides its loss for that, alignment is too strong by that factor."
                f" Pass SpatialForcing.wrap(..., grad_accumulation=N), with 1 if it divides by nothing, {_ADD}"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=2)


def _world_size() -> int:
    return torch.distributed.get_world_size() if is_distributed() else 1


def _autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast casts to on a type of device; None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # torch 2.2 and 2.3
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
