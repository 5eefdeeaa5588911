"""The tensors in the output of a forward, in whatever it is packed."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.distributions import Distribution


def tensors_in(output: object) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists, mappings (as ``ModelOutput``), dataclasses and distributions, each once."""
    return iter({id(tensor): tensor for tensor in _walk(output)}.values())


def _walk(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for value in _parts(output).values():
        yield from _walk(value)


def map_tensors(output: object, change: Callable[[Tensor], Tensor]) -> Any:
    """``output`` with each of its tensors changed.

    Mappings are changed in place, as their framework's own code would do: ``ModelOutput`` keeps keys and attributes
    in step. Everything else is copied, and stays the same object where nothing in it changed.
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping) and not isinstance(output, MutableMapping):
        return output
    parts = _parts(output)
    fresh = {key: map_tensors(value, change) for key, value in parts.items()}
    changed = {key: value for key, value in fresh.items() if value is not parts[key]}
    if isinstance(output, MutableMapping):
        for key, value in changed.items():
            output[key] = value
        return output
    if not changed:
        return output
    if isinstance(output, (tuple, list)):
        return getattr(type(output), "_make", type(output))(fresh.values())  # a named tuple has _make
    copied = copy.copy(output)
    for name, value in changed.items():
        object.__setattr__(copied, str(name), value)  # a dataclass may be frozen, or not be built from its fields
    return copied


def _parts(value: object) -> Mapping[Any, object]:
    # Mappings first: a ModelOutput of transformers is a dataclass too, whose fields may lag behind its keys.
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # Policies of reinforcement learning return distributions, which hold their tensors in plain attributes.
    return vars(value) if isinstance(value, (Distribution, types.SimpleNamespace)) else {}
