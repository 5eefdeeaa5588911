"""Modules, batch entries and losses at dotted paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from sfkit.errors import AdapterError, LossError, ViewsError, did_you_mean
from sfkit.policies.loss import find_loss

_SHOWN = 12


def find_module(policy: nn.Module, path: str, option: str) -> nn.Module:
    """The submodule at a path. PEFT wrappers on the way are looked through, so that a path holds with LoRA too.

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
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            children = [child for child, _ in module.named_children()]
            where = f"{walked!r} ({type(module).__name__})" if walked else type(module).__name__
            raise AdapterError(
                f"{option}={path!r}: {where} has no module {name!r}.{did_you_mean(name, children)}",
                f"Modules there: {', '.join(children[:_SHOWN]) or 'none'}. `sfkit inspect` lists candidates.",
            )
        module, walked = found, f"{walked}.{name}" if walked else name
    return module


def _inside_peft(module: nn.Module) -> nn.Module:
    base = getattr(module, "get_base_model", None)
    if callable(base) and type(module).__module__.split(".")[0] == "peft":
        inner: nn.Module = base()
        return inner
    return module


def find_value(arguments: Mapping[str, Any], path: str, option: str) -> Any:
    """What is at a path in the arguments of a forward.

    A path starts with the name of an argument, or inside an argument that is a mapping (the batch). Keys may hold dots
    themselves (``observation.images.top``). ``*`` stands for every item of a list: ``examples.*.image``.

    Raises:
        ViewsError: There is nothing; says what is there.
    """
    for root in _roots(arguments):
        found = list(_walk(root, path))
        if found:
            return found[0]
    raise ViewsError(
        f"{option}={path!r} is not in the batch. It has: {describe_batch(arguments)}.",
        "Give the argument's name, or a dotted path into it.",
    )


def _roots(arguments: Mapping[str, Any]) -> Iterator[Any]:
    yield arguments
    yield from (value for value in arguments.values() if isinstance(value, Mapping))


def _walk(value: Any, path: str) -> Iterator[Any]:
    """The value at a path, or nothing. The longest key that fits is followed first."""
    if not path:
        yield value
        return
    names = path.split(".")
    if names[0] == "*":
        if isinstance(value, Sequence) and not isinstance(value, str):
            rest = [next(_walk(item, ".".join(names[1:])), None) for item in value]
            if rest and all(item is not None for item in rest):
                yield rest
        return
    for count in range(len(names), 0, -1):
        child = _child(value, ".".join(names[:count]))
        if child is not None:
            yield from _walk(child, ".".join(names[count:]))


def _child(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value[int(key)] if key.isdigit() and int(key) < len(value) else None
    return None if isinstance(value, Tensor) or "." in key else getattr(value, key, None)


def describe_batch(arguments: Mapping[str, Any]) -> str:
    """Names and shapes of what a forward was given, a level deep."""
    parts = []
    for root in _roots(arguments):
        parts += [f"{key} {describe(value)}" for key, value in root.items() if value is not None]
    more = f", and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more or "nothing"


def describe(value: Any) -> str:
    """Shape, dtype and range of a tensor; the type of anything else."""
    if not isinstance(value, Tensor):
        size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
        return type(value).__name__ + size
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


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
