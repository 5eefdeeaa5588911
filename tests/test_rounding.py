"""Bounds that hold on every processor: what they let through, and what not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.testing.checks import ROUNDING, assert_rounded, float64, relative_difference, widened


@dataclass(frozen=True)
class Pair:
    values: Tensor
    mask: Tensor
    name: str


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8))


def stubborn(x: Tensor) -> Tensor:
    """Asks for float32 in each of the ways that there are."""
    table = torch.arange(4, dtype=torch.float32) / 3 + torch.linspace(0, 1, 4)
    return x.float() * table.to(torch.float32) + torch.full((4,), 0.1, dtype=torch.float32)


def test_code_that_asks_for_float32_gets_float64() -> None:
    x = torch.randn(3, 4)
    with float64():
        found = stubborn(widened(x))
    table = torch.arange(4, dtype=torch.float64) / 3 + torch.linspace(0, 1, 4, dtype=torch.float64)
    assert found.dtype == torch.float64
    assert relative_difference(found, x.double() * table + 0.1) < 1e-15
    assert stubborn(x).dtype == torch.float32, "and float32 again behind it"


def test_the_default_dtype_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), float64():
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32


def test_widened_is_a_copy_of_what_is_float32() -> None:
    model, values, half = network(), torch.ones(2), torch.ones(2).half()
    pair = Pair(values, values > 0, "one")
    wide = widened({"pair": pair, "list": [values, half], "model": model, "text": "as it is"})
    assert wide["pair"].values.dtype == wide["list"][0].dtype == torch.float64
    assert (wide["pair"].mask.dtype, wide["list"][1].dtype, wide["text"]) == (torch.bool, torch.float16, "as it is")
    assert {parameter.dtype for parameter in wide["model"].parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_float32_and_another_order_of_sums_pass() -> None:
    model, x = network(), torch.randn(32, 64)
    with float64():
        exact = widened(model)(widened(x))
    assert_rounded(model(x), exact)
    assert relative_difference(model(x), exact) < ROUNDING[torch.float32] / 8
    assert_rounded(torch.cat([model(row[None]) for row in x]), model(x))
    assert_rounded(x.flip(1) @ torch.ones(64, 3), x @ torch.ones(64, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_product_in_half_precision_does_not_pass(dtype: torch.dtype) -> None:
    x, weight = torch.randn(32, 64), torch.randn(8, 64)
    with pytest.raises(AssertionError, match="times what rounding"):
        assert_rounded(F.linear(x.to(dtype), weight.to(dtype)).float(), F.linear(x.double(), weight.double()))


def test_a_wrong_epsilon_shows_in_float64_alone() -> None:
    x = torch.randn(32, 64)
    right, wrong = (F.layer_norm(x, (64,), eps=eps) for eps in (1e-6, 1e-5))
    assert_rounded(wrong, right)
    with float64():
        right, wrong = (F.layer_norm(widened(x), (64,), eps=eps) for eps in (1e-6, 1e-5))
    with pytest.raises(AssertionError, match="times what rounding"):
        assert_rounded(wrong, right)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0, torch.nan]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.1])]
)
def test_other_values_shapes_and_nan_do_not_pass(wrong: Tensor) -> None:
    assert_rounded(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(AssertionError):
        assert_rounded(wrong, torch.tensor([1.0, 2.0]))


def test_of_several_the_small_ones_have_a_scale() -> None:
    wanted = {"large": torch.tensor([64.0]), "zero but for rounding": torch.tensor([1e-8])}
    assert_rounded({**wanted, "zero but for rounding": torch.tensor([-2e-8])}, wanted)
    with pytest.raises(AssertionError, match="zero but for rounding is off"):
        assert_rounded({**wanted, "zero but for rounding": torch.tensor([1e-3])}, wanted)
    with pytest.raises(AssertionError, match="found"):
        assert_rounded({"large": torch.tensor([64.0])}, wanted)


def test_tensors_without_values_do_not_differ() -> None:
    assert_rounded(torch.zeros(0, 4), torch.zeros(0, 4))
    assert_rounded({"none": torch.zeros(0), "one": torch.ones(1)}, {"none": torch.zeros(0), "one": torch.ones(1)})
