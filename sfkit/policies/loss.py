"""The loss in what a policy returned: how to find it, replace it, and add to it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfkit.errors import LossError

_LOSS_KEYS = ("loss", "action_loss")


def find_loss(output: object) -> Tensor | None:
    """The loss in a tensor, a ``(loss, ...)`` tuple, a mapping or ``ModelOutput`` with a loss key; else None."""
    if isinstance(output, Mapping):
        return next((output[key] for key in _LOSS_KEYS if isinstance(output.get(key), Tensor)), None)
    loss = output[0] if isinstance(output, (tuple, list)) and output else output
    return loss if isinstance(loss, Tensor) else None


def replace_loss(output: Any, loss: Tensor) -> Any:
    """``output`` with its loss replaced by ``loss``, ``()`` or ``(b, ...)``.

    Mappings change in place, as in their framework's own code.

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
        return with_item(output, 0, loss)
    raise LossError(
        f"No loss found in the {type(output).__name__} that forward returned.",
        "The adapter must override `loss` and `with_loss` for this policy.",
    )


def with_item(values: Sequence[object], index: int, value: object) -> object:
    """A tuple, named tuple or list of the same type with one item replaced."""
    items = [*values[:index], value, *values[index + 1 :]]
    kind: Any = type(values)
    return kind(*items) if hasattr(values, "_fields") else kind(items)


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
