"""Checks for plugins: spatial correspondence, and bounds on rounding that hold on every processor.

Kernels that sum in another order give other float32 results, so that a bound which fits one processor fails on the
next. A bound is therefore a fixed share of the largest value, :data:`ROUNDING`. A fault of that size or smaller, such
as a wrong epsilon, needs float64: in :func:`float64` all processors agree to some 1e-14.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfkit.errors import SfkitError
from sfkit.training.observer import StepObserver
from sfkit.views.types import FeatureMap, Views
from sfkit.wrap import SpatialForcing

Batch = TypeVar("Batch")
T = TypeVar("T")

#: ``perturb(batch, view, (rows, columns)) -> batch``: change image (and depth) of one view inside a box of pixels.
Perturb: TypeAlias = Callable[[Batch, int, tuple[slice, slice]], Batch]


class CorrespondenceError(SfkitError):
    """A perturbed patch changed another patch's token or feature most."""


def check_correspondence(
    policy: nn.Module,
    batch: Batch,
    perturb: Perturb[Batch],
    *,
    cells: Iterable[tuple[int, int]] | None = None,
    run: Callable[[nn.Module, Batch], object] = lambda policy, batch: policy(batch),
) -> None:
    """Perturb one image patch at a time; its own token and feature must change most.

    Where the teacher has a grid of its own, a cell that overlaps with the patch must change most. The check finds
    exchanged axes, token spans that are off by one, exchanged cameras and wrong letterboxes, which a cosine loss does
    not show.

    Args:
        policy: A wrapped policy in training mode, best at layer 0, where tokens are not mixed yet, or at ``"encoder"``.
            The check reads the layer of the first pair.
        batch: A batch of the policy.
        perturb: Returns a changed copy of the batch; the box is in pixels of the *view*.
        cells: ``(row, column)`` to try in each view; the valid corners and the center by default.
        run: Runs the policy on a batch. Its random numbers are the same each time.

    Raises:
        CorrespondenceError: Another token or feature changed most; the error names it and the patch.
    """
    before = _capture(policy, batch, run)
    mask = before["mask"].any(0)
    grid = mask.shape[1], mask.shape[2]
    height, width = (int(pixels) // count for pixels, count in zip(before["size"], grid, strict=True))
    for view, valid in enumerate(mask):
        if not bool(valid.any()):
            continue  # a camera that is missing in all samples
        for row, column in cells if cells is not None else _corners_and_center(valid):
            box = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            after = _capture(policy, perturb(batch, view, box), run)
            for name in ("student", "teacher"):
                change = (after[name] - before[name]).float().norm(dim=-1).mean(0)
                _expect_most(name, change, (view, row, column), grid)


def _capture(policy: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], object]) -> dict[str, Tensor]:
    """Tokens and features ``(b, v, gh, gw, d)`` of one run, the tokens' mask ``(b, v, gh, gw)``, the views' size."""
    handle = SpatialForcing.of(policy)
    if handle is None:
        raise CorrespondenceError("The policy is not wrapped.", "Wrap it first.")
    seen: dict[str, Tensor] = {}

    class Size(StepObserver):
        def captured(self, views: Views, students: object) -> None:
            seen["size"] = torch.tensor(views.size)

    def keep(pair: nn.Module, maps: tuple[FeatureMap, FeatureMap]) -> None:
        student, teacher = maps[:2]
        seen.update(student=student.values.detach().clone(), mask=student.mask)
        seen["teacher"] = torch.where(teacher.mask.unsqueeze(-1), teacher.values, 0.0).clone()

    hook = handle.pairs[0].register_forward_pre_hook(keep)
    handle.observers.append(Size())
    try:
        with torch.random.fork_rng(devices=[]):  # the policy draws the same noise in each run
            run(policy, batch)
    finally:
        hook.remove()
        handle.observers.pop()
    return seen


def _corners_and_center(mask: Tensor) -> list[tuple[int, int]]:
    """Row and column of five cells of a mask ``(gh, gw)``."""
    valid = mask.nonzero()
    (top, left), (bottom, right) = valid.min(0).values.tolist(), valid.max(0).values.tolist()
    center = ((top + bottom) // 2, (left + right) // 2)
    return [(top, left), (top, right), (bottom, left), (bottom, right), center]


def _expect_most(name: str, change: Tensor, patch: tuple[int, int, int], grid: tuple[int, int]) -> None:
    """Check that a change ``(v, gh, gw)`` is largest in a cell that overlaps with ``patch``, a cell of ``grid``."""
    view, row, column = patch
    if not bool(change.max() > 0):
        raise CorrespondenceError(
            f"Perturbing row {row}, column {column} of view {view} moved nothing in the {name}.",
            "Check that perturb changes what the policy reads, in a copy of the batch, and that the adapter shows the "
            "teacher the images of this batch.",
        )
    own_grid = change.shape[1], change.shape[2]
    at, cell = divmod(int(change.argmax()), own_grid[0] * own_grid[1])
    at_row, at_column = divmod(cell, own_grid[1])
    overlap = all(
        # Cell `one` of `ones` along an axis and cell `other` of `others` share a piece of it.
        one * others < (other + 1) * ones and other * ones < (one + 1) * others
        for one, ones, other, others in zip((at_row, at_column), own_grid, (row, column), grid, strict=True)
    )
    if at != view or not overlap:
        raise CorrespondenceError(
            f"Perturbing row {row}, column {column} of view {view} moved the {name}'s row {at_row}, column {at_column} "
            f"of view {at} most{'' if own_grid == grid else f', on its grid of {own_grid[0]}x{own_grid[1]}'}.",
            "Check the order of axes, the token span, the order of cameras and the letterbox in the adapter.",
        )


#: The rounding error of a result, in parts of the largest value. In float32: 512 times the 2**-24 of one operation.
#: Networks of a few layers lose 28 times 2**-24 on the worst of x86's kernels, gradients of the alignment loss 68
#: times. A product in TF32 or float16 loses 2**-11, one in bfloat16 2**-8: 16 and 128 times the bound. In float64 the
#: same networks lose about 2**-48; the bound lies between that and the error of one operation of float32.
ROUNDING = {torch.float32: 2.0**-15, torch.float64: 2.0**-31}

#: Here a dtype is that of stored bytes, as in a file of weights.
_READING = (Tensor.view, torch.frombuffer)


class _Float64(TorchFunctionMode):
    """Puts float64 where an operation names float32."""

    def __torch_function__(self, func: Any, types: object, args: Iterable[object] = (), kwargs: Any = None) -> object:
        kwargs = kwargs or {}
        # torch.get_default_dtype alone does not do: models name float32, and call .float().
        if func in _READING:
            return func(*args, **kwargs)
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(_wide_dtype, args), **{key: _wide_dtype(value) for key, value in kwargs.items()})


def _wide_dtype(value: object) -> object:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 inside the block, even where the code names float32; also a decorator, ``@float64()``.

    New tensors are float64. Modules and tensors from outside go through :func:`widened` first.
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

    A value that is not float32 stays as it is.
    """
    result: Any = value
    if isinstance(value, Tensor):
        result = value.double() if value.dtype == torch.float32 else value
    elif isinstance(value, nn.Module):
        result = copy.deepcopy(value).double()
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{field.name: widened(getattr(value, field.name)) for field in fields(value)})
    elif isinstance(value, dict):
        result = {key: widened(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(widened(item) for item in value)
    return result  # type: ignore[no-any-return]


def relative_difference(actual: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """The largest difference in parts of the largest expected value; NaN where either tensor holds one.

    Args:
        actual: ``(*)``, of any floating dtype.
        expected: ``(*)``, of the same shape.
        scale: The least value to divide by.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    return _largest(actual - expected) / (max(_largest(expected), scale) or 1.0)


def _largest(values: Tensor) -> float:
    """The largest absolute value of ``(*)``; 0 of an empty tensor, which has no difference."""
    return float(values.detach().abs().max()) if values.numel() else 0.0


def assert_rounded(actual: Tensor | Mapping[str, Tensor], expected: Tensor | Mapping[str, Tensor]) -> None:
    """Assert that two computations of the same differ by rounding alone.

    The bound is the sum of :data:`ROUNDING` for both dtypes: 2**-15 between float32 and a float64 reference, 2**-14
    between two computations in float32, 2**-30 between two in float64.

    Args:
        actual: ``(*)`` in float32 or float64; or several by name, such as the gradients of one loss. A small one of
            several is compared with a 64th of the largest value of all: a gradient that is 0 but for rounding has no
            scale of its own.
        expected: float32 or float64, of the same shapes.

    Raises:
        AssertionError: The names or shapes differ, or a difference is above the bound.
    """
    several = isinstance(expected, Mapping)
    ones = dict(actual) if isinstance(actual, Mapping) else {"": actual}
    others = dict(expected) if isinstance(expected, Mapping) else {"": expected}
    assert ones.keys() == others.keys(), f"found {sorted(ones)}, expected {sorted(others)}"
    least = max(map(_largest, others.values())) / 64 if several else 0.0
    for name, other in others.items():
        one = ones[name]
        assert one.shape == other.shape, f"{name} has shape {tuple(one.shape)}, not {tuple(other.shape)}"
        bound, difference = ROUNDING[one.dtype] + ROUNDING[other.dtype], relative_difference(one, other, least)
        assert difference <= bound, (
            f"{name} is off by {difference:.1e} of the largest value, {difference / bound:.1f} times what rounding of "
            f"{one.dtype} and {other.dtype} explains"
        )
