"""A loss at a path in what a policy's forward returned."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from sfkit.errors import LossError
from sfkit.policies.generic.paths import describe
from sfkit.policies.loss import find_loss

#: What users write where the loss is the output itself, or the first of a tuple.
ITSELF = "output"


def loss_at(output: Any, path: str) -> Tensor:
    """The loss at a dotted path of keys, attributes and tuple indices; ``"output"`` is the output itself.

    Raises:
        LossError: There is no tensor.
    """
    if path == ITSELF:
        found = find_loss(output)
    else:
        holder, name = _holder(output, path)
        found = _get(holder, name)
    if not isinstance(found, Tensor):
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise LossError(
            f"loss={path!r} leads to {describe(found)} in the {type(output).__name__}{keys} that forward returned.",
            "Correct the path, or leave it out if forward returns its loss.",
        )
    return found


def with_loss_at(output: Any, path: str, loss: Tensor) -> Any:
    """``output`` with the loss at a path replaced; tuples on the way are rebuilt, everything else changed in place."""
    name, _, rest = path.partition(".")
    value = with_loss_at(_get(output, name), rest, loss) if rest else loss
    if isinstance(output, MutableMapping):
        output[name] = value
        return output
    if isinstance(output, tuple | list) and name.isdigit():
        items = [*output[: int(name)], value, *output[int(name) + 1 :]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    setattr(output, name, value)
    return output


def _holder(output: Any, path: str) -> tuple[Any, str]:
    *before, name = path.split(".")
    for step in before:
        output = _get(output, step)
    return output, name


def _get(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, tuple | list) and name.isdigit():
        return value[int(name)] if int(name) < len(value) else None
    return getattr(value, name, None)
