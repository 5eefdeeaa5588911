"""A loss of several values that is summed differs from one that is averaged, by the gradient that comes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sfkit.training.checks import warn_if_sum_reduction


def warned(reduce: Callable[[Tensor], Tensor], *shape: int) -> list[str]:
    loss = torch.rand(shape, requires_grad=True) * 2
    warn_if_sum_reduction(loss)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        reduce(loss).backward()
    return [str(one.message) for one in found]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_fault_15_a_sum_is_warned_of(shape: tuple[int, ...]) -> None:
    found = warned(lambda loss: loss.sum(), *shape)
    assert len(found) == 1
    assert f"the {torch.Size(shape).numel()} values" in found[0]


@pytest.mark.parametrize(
    "reduce",
    [
        lambda loss: loss.mean(),
        lambda loss: loss.mean() / 4,
        lambda loss: (loss * torch.tensor([1.0, 0.0, 2.0])).sum(),
        lambda loss: loss[0, 0],
    ],
    ids=["mean", "accumulated", "weighted", "one"],
)
def test_fault_15_other_reductions_are_not(reduce: Callable[[Tensor], Tensor]) -> None:
    assert not warned(reduce, 2, 3)


def test_a_scalar_and_a_loss_without_gradient_are_left_alone() -> None:
    assert not warned(lambda loss: loss)
    warn_if_sum_reduction(torch.rand(3))
