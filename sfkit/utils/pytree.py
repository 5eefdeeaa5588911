"""The tensors in what a forward returned, whatever it is packed in."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

#: What holds its tensors in plain attributes. Policies of reinforcement learning return distributions.
_RECORDS = (Distribution, types.SimpleNamespace)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists, mappings (as ``ModelOutput``), dataclasses and distributions, each once."""
    seen: set[int] = set()
    for tensor in _walk(output):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _walk(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _walk(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _walk(value)
    elif is_dataclass_object(output):
        for field in dataclasses.fields(output):
            yield from _walk(getattr(output, field.name))
    elif isinstance(output, _RECORDS):
        yield from _walk(vars(output))


def map_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``output`` with each of its tensors changed.

    Mappings are changed in place, as their framework's own code would do: ``ModelOutput`` keeps keys and attributes
    in step. Everything else is made anew, and is the same object where nothing in it changed.
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, MutableMapping):
        for key, value in list(output.items()):
            fresh = map_tensors(value, change)
            if fresh is not value:
                output[key] = fresh
        return output
    if isinstance(output, (tuple, list)):
        items = [map_tensors(value, change) for value in output]
        if all(fresh is value for fresh, value in zip(items, output, strict=True)):
            return output
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if is_dataclass_object(output):
        values = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        fresh_values = {name: map_tensors(value, change) for name, value in values.items()}
        changed = {name: fresh for name, fresh in fresh_values.items() if fresh is not values[name]}
        return with_fields(output, changed) if changed else output
    if isinstance(output, _RECORDS):
        attributes = {name: map_tensors(value, change) for name, value in vars(output).items()}
        renewed = {name: fresh for name, fresh in attributes.items() if fresh is not vars(output)[name]}
        return with_fields(output, renewed) if renewed else output
    return output


def is_dataclass_object(value: Any) -> bool:
    """True for an instance of a dataclass, not for the class."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def with_fields(record: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a dataclass object with some fields changed; it need not be possible to construct it anew."""
    import copy

    fresh = copy.copy(record)
    for name, value in changes.items():
        object.__setattr__(fresh, name, value)
    return fresh
