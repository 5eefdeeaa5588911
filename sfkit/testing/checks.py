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
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfkit.config import ENCODER
from sfkit.errors import SfkitError
from sfkit.wrap import SpatialForcing

#: ``perturb(batch, view, (rows, columns)) -> batch``: change the picture (and depth) of one view inside a pixel box.
Perturb = Callable[[Any, int, tuple[slice, slice]], Any]


class CorrespondenceError(SfkitError):
    """A perturbed patch moved another patch's token or feature most."""


def check_correspondence(
    policy: nn.Module,
    batch: Any,
    perturb: Perturb,
    *,
    cells: Iterable[tuple[int, int]] | None = None,
    run: Callable[[nn.Module, Any], Any] = lambda policy, batch: policy(batch),
) -> None:
    """Perturb one image patch at a time; what moves most must be that patch's own token and feature.

    Of a teacher with a grid of its own, that is a cell which overlaps with the patch. It catches exchanged axes, token
    spans that are off by one, exchanged cameras and wrong letterboxes, all of which a cosine loss cannot see.

    Args:
        policy: A wrapped policy in training mode, best at layer 0, where tokens have not been mixed yet, or at
            ``"encoder"``. The layer of the first pair is looked at.
        batch: One batch of it.
        perturb: Returns a changed copy of the batch; the box is in pixels of the *view*.
        cells: ``(row, column)`` to try in each view; the valid corners and the center by default.
        run: How the policy takes a batch. What it draws at random is the same each time.

    Raises:
        CorrespondenceError: Names the patch and what moved instead, if anything did.
    """
    before = _maps(policy, batch, run)
    mask = before["mask"].any(0)
    views, (rows, columns) = mask.shape[0], mask.shape[1:]
    height, width = before["size"].tolist()
    for view in range(views):
        if not bool(mask[view].any()):
            continue  # a camera that is missing in all samples
        for row, column in cells if cells is not None else _corners_and_center(mask[view]):
            box = (_side(row, rows, height), _side(column, columns, width))
            after = _maps(policy, perturb(batch, view, box), run)
            for name in ("student", "teacher"):
                moved = (after[name] - before[name]).float().norm(dim=-1).mean(0)
                _expect_most(name, moved, (view, row, column), (rows, columns))


def _maps(policy: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any]) -> dict[str, Tensor]:
    handle = SpatialForcing.of(policy)
    if handle is None:
        raise CorrespondenceError("The policy is not wrapped.", "Wrap it first.")
    seen: dict[str, Tensor] = {}
    adapter, host = handle.adapter, handle.hosts[0]
    method = "encoder_tokens" if handle.pairs[0].student_layer == ENCODER else "visual_tokens"
    real_tokens, real_features = getattr(adapter, method), host.features

    def tokens(captured: Any, views: Any) -> Any:
        found = real_tokens(captured, views)
        seen.update(student=found.values.detach().clone(), mask=found.mask, size=torch.tensor(views.size))
        return found

    def features(*args: Any) -> Any:
        found = real_features(*args)
        seen["teacher"] = torch.where(found[0].mask.unsqueeze(-1), found[0].values, 0.0).clone()
        return found

    with (
        mock.patch.object(adapter, method, tokens),
        mock.patch.object(host, "features", features),
        torch.random.fork_rng(devices=[]),
    ):
        run(policy, batch)
    return seen


def _corners_and_center(mask: Tensor) -> list[tuple[int, int]]:
    valid = mask.nonzero()
    (top, left), (bottom, right) = valid.min(0).values.tolist(), valid.max(0).values.tolist()
    center = ((top + bottom) // 2, (left + right) // 2)
    return [(top, left), (top, right), (bottom, left), (bottom, right), center]


def _side(index: int, count: int, pixels: int) -> slice:
    step = pixels // count
    return slice(index * step, (index + 1) * step)


def _expect_most(name: str, moved: Tensor, wanted: tuple[int, int, int], grid: tuple[int, int]) -> None:
    """What moved most lies where it was expected; a teacher's cell, on a grid of its own, overlaps with the patch."""
    _, rows, columns = moved.shape
    if not bool(moved.max() > 0):
        raise CorrespondenceError(
            f"Perturbing row {wanted[1]}, column {wanted[2]} of view {wanted[0]} moved nothing in the {name}.",
            "Check that perturb changes what the policy reads, in a copy of the batch, and that the adapter shows the "
            "teacher the pictures of this batch.",
        )
    most = int(moved.argmax())
    found = (most // (rows * columns), most // columns % rows, most % columns)
    places = zip(found[1:], (rows, columns), wanted[1:], grid, strict=True)
    own = all(_overlap(*place) for place in places)
    if found[0] != wanted[0] or not own:
        view, row, column = wanted
        raise CorrespondenceError(
            f"Perturbing row {row}, column {column} of view {view} moved the {name}'s row {found[1]}, "
            f"column {found[2]} of view {found[0]} most"
            f"{'' if (rows, columns) == grid else f', on its grid of {rows}x{columns}'}.",
            "Check the order of axes, the token span, the order of cameras and the letterbox in the adapter.",
        )


def _overlap(one: int, ones: int, other: int, others: int) -> bool:
    """Whether cell ``one`` of ``ones`` along an axis and cell ``other`` of ``others`` have a piece of it in common."""
    return one * others < (other + 1) * ones and other * ones < (one + 1) * others


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
