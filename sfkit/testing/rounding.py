"""Bounds that hold on every processor.

Two kernels that sum in another order give other float32 results, and a bound that fits one processor fails on the next.
So a test asks two questions apart from each other. Is it the same mathematics? In :func:`float64` every processor gives
the same answer but for some 1e-14, and a bound of 1e-9 leaves room on both sides. Does float32 lose no more than its
rounding? :func:`assert_rounded` holds it against the float64 result.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

#: The largest loss that counts as rounding of float32, in parts of the largest value: 512 times the 2**-24 of one
#: operation. A single product in TF32 or float16 loses 2**-11, one in bfloat16 2**-8: 16 and 128 times as much.
ROUNDING = 2.0**-15


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
    """Compute in float64 what runs inside, even where the code asks for float32.

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


def loss_of_float32(found: Tensor, exact: Tensor) -> float:
    """The largest difference in parts of the largest value: the number that :data:`ROUNDING` bounds.

    Args:
        found: The result of float32.
        exact: The same computed in float64, of the same shape.
    """
    scale = float(exact.abs().max())
    largest = float((found.double() - exact).abs().max())
    return largest / scale if scale else largest


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """Assert that ``found`` is ``exact`` but for rounding of float32.

    Args:
        found: float32.
        exact: The same computed in :func:`float64`, of the same shape.

    Raises:
        AssertionError: The shapes differ, or the difference is above :data:`ROUNDING`.
    """
    assert found.dtype == torch.float32, f"the result is {found.dtype}, not float32"
    assert exact.dtype == torch.float64, f"the reference is {exact.dtype}, not float64"
    assert found.shape == exact.shape, f"shapes {tuple(found.shape)} and {tuple(exact.shape)} differ"
    loss = loss_of_float32(found, exact)
    assert loss <= ROUNDING, f"float32 loses {loss:.1e} of the largest value, {loss / ROUNDING:.1f} times the bound"
