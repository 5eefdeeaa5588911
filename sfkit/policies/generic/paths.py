"""Modules of a policy, values of a batch, and the loss in an output, by dotted paths."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from torch import Tensor, nn

from sfkit.errors import AdapterError, LossError, ViewsError, did_you_mean
from sfkit.policies.base import find_loss, with_item

#: How many names an error lists.
_SHOWN = 12


def find_module(policy: nn.Module, path: str, option: str) -> nn.Module:
    """The submodule at a path. A PEFT wrapper on the way is skipped, so that a path holds with LoRA too.

    Args:
        policy: Where the path starts.
        path: Names joined by dots; ``""`` is the policy itself.
        option: The option that gave the path, for messages.

    Raises:
        AdapterError: There is none; says up to where the path leads, and what is there.
    """
    module, walked = policy, ""
    for name in filter(None, path.split(".")):
        module = _inside_peft(module)
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            children = [child for child, _ in module.named_children()]
            where = f"{walked!r} ({type(module).__name__})" if walked else type(module).__name__
            raise AdapterError(
                f"{option}={path!r}: {where} has no module {name!r}.{did_you_mean(name, children)}",
                f"Modules there: {', '.join(children[:_SHOWN]) or 'none'}. `sfkit inspect` lists candidates.",
            )
        module, walked = child, f"{walked}.{name}" if walked else name
    return module


def _inside_peft(module: nn.Module) -> nn.Module:
    base = getattr(module, "get_base_model", None)
    if callable(base) and type(module).__module__.split(".")[0] == "peft":
        inner: nn.Module = base()
        return inner
    return module


def find_value(arguments: Mapping[str, object], path: str, option: str) -> object:
    """The value at a path in the arguments of a forward.

    A path starts with the name of an argument, or inside an argument that is a mapping (the batch). Keys may hold dots
    themselves (``observation.images.top``). ``*`` stands for every item of a list: ``examples.*.image``.

    Raises:
        ViewsError: There is nothing; says what is there.
    """
    for root in _roots(arguments):
        for value in _walk(root, path):
            return value
    raise ViewsError(
        f"{option}={path!r} is not in the batch. It has: {_describe_batch(arguments)}.",
        "Give the argument's name, or a dotted path into it.",
    )


def _roots(arguments: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    yield arguments
    yield from (value for value in arguments.values() if isinstance(value, Mapping))


def _walk(value: object, path: str) -> Iterator[object]:
    """The value at a path, or nothing. The longest key that fits is followed first."""
    names = path.split(".")
    if not path:
        yield value
    elif names[0] != "*":
        # Keys may hold dots, as LeRobot's do.
        for count in range(len(names), 0, -1):
            child = _child(value, ".".join(names[:count]))
            if child is not None:
                yield from _walk(child, ".".join(names[count:]))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [next(_walk(item, ".".join(names[1:])), None) for item in value]
        if items and all(item is not None for item in items):
            yield items


def _child(value: object, key: str) -> object:
    """What is under one key, index or attribute; None where there is nothing."""
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit():
        return value[int(key)] if int(key) < len(value) else None
    return None if isinstance(value, Tensor) else getattr(value, key, None)


def _describe_batch(arguments: Mapping[str, object]) -> str:
    """Names and shapes of the arguments, a level deep."""
    items = (item for root in _roots(arguments) for item in root.items())
    parts = [f"{key} {describe(value)}" for key, value in items if value is not None]
    more = f", and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more or "nothing"


def describe(value: object) -> str:
    """Shape and dtype of a tensor; the type of anything else."""
    if not isinstance(value, Tensor):
        size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
        return type(value).__name__ + size
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def loss_at(output: object, path: str) -> Tensor:
    """The loss at a dotted path of keys, attributes and tuple indices; ``"output"`` is the output itself.

    Raises:
        LossError: There is no tensor.
    """
    loss = find_loss(output) if path == "output" else functools.reduce(_child, path.split("."), output)
    if not isinstance(loss, Tensor):
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise LossError(
            f"loss={path!r} leads to {describe(loss)} in the {type(output).__name__}{keys} that forward returned.",
            "Correct the path, or leave it out if forward returns its loss.",
        )
    return loss


def with_loss_at(output: object, path: str, loss: Tensor) -> object:
    """``output`` with the loss at a path replaced by ``loss``, ``()`` or ``(b, ...)``.

    Tuples on the way are rebuilt; everything else changes in place.
    """
    name, _, rest = path.partition(".")
    value = with_loss_at(_child(output, name), rest, loss) if rest else loss
    if isinstance(output, tuple | list) and name.isdigit():
        return with_item(output, int(name), value)
    if isinstance(output, MutableMapping):
        output[name] = value
    else:
        setattr(output, name, value)
    return output
