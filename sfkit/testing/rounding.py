"""Bounds that hold on every processor.

Kernels that sum in another order give other float32 results, and a bound that fits one processor fails on the next. So
a bound is a stated share of the largest value, :data:`ROUNDING`, and not what one machine happened to give. A fault of
that size or smaller, such as a wrong epsilon, needs float64: in :func:`float64` all processors agree to some 1e-14.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

#: What a result may lose, in parts of the largest value. In float32: 512 times the 2**-24 of one operation. Networks
#: of a few layers lose 28 times 2**-24 on the worst of x86's kernels, gradients of the alignment loss 68 times. A
#: product in TF32 or float16 loses 2**-11, one in bfloat16 2**-8: 16 and 128 times the bound. In float64 the same
#: networks lose about 2**-48; the bound lies between that and what one operation of float32 loses.
ROUNDING = {torch.float32: 2.0**-15, torch.float64: 2.0**-31}

#: Here a dtype says what bytes are, as in a file of weights.
_READING = (Tensor.view, torch.frombuffer)


class _Float64(TorchFunctionMode):
    """Puts float64 where an operation names float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING:
            return func(*args, **(kwargs or {}))
        if func is Tensor.float:
            func = Tensor.double
        args = [_wide_dtype(value) for value in args]
        return func(*args, **{key: _wide_dtype(value) for key, value in (kwargs or {}).items()})


def _wide_dtype(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 what runs inside, even where the code asks for float32; also a decorator, ``@float64()``.

    New tensors are float64. Modules and tensors made outside go through :func:`widened` first.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def widened(value: T) -> T:
    """A copy in float64 of a tensor, of a module, or of the tensors in lists, tuples, mappings and dataclasses.

    What is not float32 stays what it is.
    """
    found: Any = value
    if isinstance(value, Tensor):
        found = value.double() if value.dtype == torch.float32 else value
    elif isinstance(value, nn.Module):
        found = copy.deepcopy(value).double()
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{field.name: widened(getattr(value, field.name)) for field in fields(value)})
    elif isinstance(value, dict):
        found = {key: widened(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        found = type(value)(widened(item) for item in value)
    return found  # type: ignore[no-any-return]


def relative_difference(found: Tensor, wanted: Tensor, scale: float = 0.0) -> float:
    """The largest difference in parts of the largest value that is wanted; NaN where either holds one.

    Args:
        found: Of any floating dtype.
        wanted: Of the same shape.
        scale: What to divide by at least.
    """
    found, wanted = found.detach().double(), wanted.detach().double()
    return _largest(found - wanted) / (max(_largest(wanted), scale) or 1.0)


def _largest(values: Tensor) -> float:
    """The largest absolute value; 0 of none, for a tensor without values has no difference."""
    return float(values.detach().abs().max()) if values.numel() else 0.0


def assert_rounded(found: Tensor | Mapping[str, Tensor], wanted: Tensor | Mapping[str, Tensor]) -> None:
    """Assert that two computations of the same differ by rounding alone.

    The bound is the sum of what :data:`ROUNDING` allows to each: 2**-15 between float32 and a float64 reference, 2**-14
    between two computations in float32, 2**-30 between two in float64.

    Args:
        found: float32 or float64; or several by name, such as the gradients of one loss. Of these a small one is held
            against a 64th of the largest value of all: a gradient that is 0 but for rounding has no scale of its own.
        wanted: float32 or float64, of the same shapes.

    Raises:
        AssertionError: The names or shapes differ, or a difference is above the bound.
    """
    several = isinstance(wanted, Mapping)
    ones = dict(found) if isinstance(found, Mapping) else {"": found}
    others = dict(wanted) if isinstance(wanted, Mapping) else {"": wanted}
    assert ones.keys() == others.keys(), f"found {sorted(ones)}, wanted {sorted(others)}"
    least = max(map(_largest, others.values())) / 64 if several else 0.0
    for name, other in others.items():
        one = ones[name]
        assert one.shape == other.shape, f"{name} has shape {tuple(one.shape)}, not {tuple(other.shape)}"
        bound, difference = ROUNDING[one.dtype] + ROUNDING[other.dtype], relative_difference(one, other, least)
        assert difference <= bound, (
            f"{name} is off by {difference:.1e} of the largest value, {difference / bound:.1f} times what rounding of "
            f"{one.dtype} and {other.dtype} explains"
        )
