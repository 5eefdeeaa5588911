"""Finding the loss in what a policy returned, adding to it, and putting it back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from sfkit.errors import LossError

_LOSS_KEYS = ("loss", "action_loss")


def find_loss(output: Any) -> Tensor | None:
    """The loss in a tensor, a ``(loss, ...)`` tuple, a mapping or ``ModelOutput`` with a loss key; else None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return next((output[key] for key in _LOSS_KEYS if isinstance(output.get(key), Tensor)), None)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def replace_loss(output: Any, loss: Tensor) -> Any:
    """``output`` with its loss replaced; mappings are changed in place, as their framework's own code would do.

    Raises:
        LossError: No loss is found in ``output``.
    """
    if isinstance(output, Tensor):
        return loss
    if isinstance(output, MutableMapping):
        for key in _LOSS_KEYS:
            if isinstance(output.get(key), Tensor):
                output[key] = loss
                return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        rest = (loss, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
    raise LossError(
        f"No loss found in the {type(output).__name__} that forward returned.",
        "The adapter must override `loss` and `with_loss` for this policy.",
    )


def add_per_sample(loss: Tensor, extra: Tensor) -> Tensor:
    """Add a per-sample term ``(b,)`` to a loss, whatever its reduction.

    The mean of the result is the mean of ``loss`` plus the mean of ``extra``, for a scalar ``()``, per-sample ``(b,)``
    and per-element ``(b, ...)`` loss alike.

    Raises:
        LossError: A non-scalar loss whose first axis is not the batch.
    """
    extra = extra.to(loss.device)
    if loss.ndim == 0:
        return loss + extra.mean().to(torch.promote_types(loss.dtype, torch.float32))
    if loss.shape[0] != extra.shape[0]:
        raise LossError(
            f"There is a loss of shape {tuple(loss.shape)} for a batch of {extra.shape[0]}.",
            "Reduce it to a scalar, or to one value for each sample.",
        )
    return loss + extra.reshape(-1, *[1] * (loss.ndim - 1))
