"""What all projectors promise, and what each of them is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfkit.errors import ConfigError
from sfkit.factory.components import build_objective, build_projector
from sfkit.projectors.base import Projector
from sfkit.projectors.standard import ConvProjector, NestedProjector, nested_widths
from sfkit.registry.registry import default_registry
from sfkit.testing.checks import assert_rounded
from sfkit.training.pair import AlignmentPair
from sfkit.utils.runtime import own_rng
from sfkit.views.types import FeatureMap

ALL: dict[str, Any] = {
    "mlp": "mlp",
    "linear": "linear",
    "linear normed": ("linear", {"norm": True, "bias": False}),
    "mlp-silu": ("mlp-silu", {"hidden": 7}),
    "conv": "conv",
    "conv normed": ("conv", {"norm": True, "kernel": 5}),
    "nested": "nested",
    "nested share": ("nested", {"hidden": 10, "share": 0.25, "norm": False}),
    "identity": "identity",
}
every = pytest.mark.parametrize("name", ALL)
few = settings(max_examples=10)


def build(name: str, student: int = 4, teacher: int = 4) -> Projector:
    projector = build_projector(ALL[name], student, teacher, seed=0)
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in projector.parameters():  # biases and norms too, which start at nothing
            parameter.copy_(torch.randn(parameter.shape, generator=g) / 2)
    return projector


def case(seed: int = 0, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Tokens ``(2, 2, 3, 4, dim)``, 0 where masked, and the mask."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 2, 3, 4, generator=g) > 0.3
    return torch.randn(2, 2, 3, 4, dim, generator=g) * mask.unsqueeze(-1), mask


def test_every_registered_projector_is_tried() -> None:
    assert {name.split()[0] for name in ALL} == {entry.name for entry in default_registry().of_kind("projector")}


@every
def test_the_teachers_width_on_the_same_grid(name: str) -> None:
    tokens, mask = case()
    width = 4 if name == "identity" else 6
    projected = build(name, 4, width)(tokens, mask)
    assert projected.shape == (2, 2, 3, 4, width)
    assert projected.dtype == torch.float32


@every
@few
@given(seed=st.integers(0, 1000))
def test_views_and_samples_do_not_mix(name: str, seed: int) -> None:
    tokens, mask = case(seed)
    projector = build(name)
    whole = projector(tokens, mask)
    for sample in range(2):
        for view in range(2):
            at = (slice(sample, sample + 1), slice(view, view + 1))
            assert_rounded(projector(tokens[at], mask[at]), whole[at])


@every
@settings(max_examples=3)
@given(seed=st.integers(0, 1000))
def test_gradients_are_those_of_the_formula(name: str, seed: int) -> None:
    tokens, mask = case(seed)
    projector = build(name).double()
    part = tokens[:1, :1, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: projector(x, mask[:1, :1, :2, :2]), (part,))


@every
@few
@given(seed=st.integers(0, 1000), power=st.integers(-30, 30))
def test_large_bfloat16_tokens_are_projected_to_finite_values(name: str, seed: int, power: int) -> None:
    tokens, mask = case(seed)
    half = (tokens * 2.0**power).bfloat16().requires_grad_()
    goal = FeatureMap(torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)), mask)
    projector = build(name)
    loss = AlignmentPair(projector, build_objective("cosine"))(FeatureMap(half, mask), goal).loss
    loss.sum().backward()
    assert projector(half.detach().float(), mask).isfinite().all()
    assert loss.isfinite().all()
    assert half.grad is not None
    assert half.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in projector.parameters())


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"identity"}))
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_the_loss_is_zero_where_the_target_is_what_is_projected(name: str, seed: int) -> None:
    tokens, mask = case(seed)
    projector = build(name, 4, 5)
    with torch.no_grad():
        goal = FeatureMap(projector(tokens, mask), mask)
    for objective in ("cosine", "mse"):
        loss = AlignmentPair(projector, build_objective(objective))(FeatureMap(tokens, mask), goal).loss
        assert loss.abs().max() < 1e-5


@every
@few
@given(seed=st.integers(0, 1000))
def test_fault_21_masked_tokens_reach_no_projector(name: str, seed: int) -> None:
    values, mask = case(seed)
    goal = FeatureMap(torch.randn(2, 2, 3, 4, 4), torch.ones_like(mask))
    projector, objective = build(name), build_objective("cosine")
    wanted = AlignmentPair(projector, objective)(FeatureMap(values, mask), goal).loss
    poisoned = torch.where(mask.unsqueeze(-1), values, torch.nan).requires_grad_()
    loss = AlignmentPair(projector, objective)(FeatureMap(poisoned, mask), goal).loss
    assert torch.equal(loss, wanted)
    loss.sum().backward()
    assert poisoned.grad is not None
    assert (poisoned.grad[~mask] == 0).all()
    assert poisoned.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in projector.parameters())


@pytest.mark.parametrize("norm", [False, True])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_fault_21_a_convolution_sees_nothing_of_masked_neighbors(norm: bool, seed: int) -> None:
    tokens, mask = case(seed)
    projector = build("conv normed" if norm else "conv")
    wanted = projector(tokens, mask)
    noise = torch.where(mask.unsqueeze(-1), tokens, torch.nan)
    assert torch.equal(projector(noise, mask), wanted)
    # As if the image ended there: the same as a crop whose border is the mask.
    inside = torch.zeros_like(mask)
    inside[:, :, 1:, 1:3] = True
    crop = projector(tokens[:, :, 1:, 1:3], inside[:, :, 1:, 1:3])
    assert_rounded(projector(tokens, inside)[:, :, 1:, 1:3], crop)


def test_a_convolution_by_hand() -> None:
    projector = ConvProjector(1, 1)
    with torch.no_grad():
        projector.conv.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        projector.conv.bias.fill_(0.5)
    tokens, mask = torch.zeros(1, 1, 3, 3, 1), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    tokens[0, 0, 0, 1] = 1.0  # row 0, column 1: its right neighbor sees it at the kernel's row 1, column 0
    found = projector(tokens, mask)[0, 0, ..., 0]
    assert found.tolist() == [[5.5, 4.5, 3.5], [2.5, 1.5, 0.5], [0.5, 0.5, 0.5]]


def test_the_mlp_of_repa_by_its_formula() -> None:
    tokens, mask = case()
    projector = build("mlp-silu")
    x = F.silu(F.linear(tokens, projector.fc1.weight, projector.fc1.bias))  # type: ignore[arg-type]
    x = F.silu(F.linear(x, projector.fc2.weight, projector.fc2.bias))  # type: ignore[arg-type]
    wanted = F.linear(x, projector.fc3.weight, projector.fc3.bias)  # type: ignore[arg-type]
    assert_rounded(projector(tokens, mask), wanted)
    assert build_projector("mlp-silu", 4, 6, 0).fc2.weight.shape == (2048, 2048)  # type: ignore[union-attr]


def test_identity_is_refused_where_widths_differ() -> None:
    tokens, mask = case()
    assert build("identity")(tokens, mask) is tokens
    with pytest.raises(ConfigError, match="student has 4 channels and the target 6"):
        build_projector("identity", 4, 6, 0)


@pytest.mark.parametrize("kernel", [0, 2])
def test_a_kernel_without_a_center_is_refused(kernel: int) -> None:
    with pytest.raises(ConfigError, match="kernel"):
        build_projector(("conv", {"kernel": kernel}), 4, 4, 0)


# ------------------------------------------------------------------------------------------------ nested widths


def test_the_widths_of_rocket() -> None:
    assert nested_widths(10, 2048) == (409, 591, 773, 955, 1137, 1319, 1501, 1683, 1865, 2048)
    with pytest.raises(ConfigError):
        nested_widths(0, 2048)


@settings(max_examples=50)
@given(pairs=st.integers(2, 40), hidden=st.integers(1, 5000), smallest=st.floats(0.01, 1))
def test_widths_rise_to_the_full_one(pairs: int, hidden: int, smallest: float) -> None:
    widths = nested_widths(pairs, hidden, smallest)
    assert len(widths) == pairs
    assert list(widths) == sorted(widths)
    assert widths[-1] in (hidden, hidden - 1)  # a share of 0.999... of them
    assert 1 <= widths[0] <= max(1, smallest * hidden)


@pytest.mark.parametrize("hidden", [7, 2048])
def test_fault_34_a_single_pair_has_the_full_width(hidden: int) -> None:
    assert nested_widths(1, hidden) == (hidden,)


@pytest.mark.parametrize("name", ["mlp", "nested"])
def test_fault_34_by_default_every_hidden_unit_works(name: str) -> None:
    tokens, mask = case()
    projector = build(name, 4, 10)
    assert projector.fc1.weight.shape == (10, 4)  # type: ignore[union-attr]
    projector(tokens, mask).square().sum().backward()
    moved = projector.fc1.weight.grad.abs().sum(1)  # type: ignore[union-attr]
    assert (moved > 0).all()


def test_nested_is_mlp_at_full_width() -> None:
    tokens, mask = case()
    nested, mlp = build("nested"), build("mlp")
    nested.load_state_dict(mlp.state_dict())
    assert torch.equal(nested(tokens, mask), mlp(tokens, mask))


def test_a_prefix_is_a_projector_of_its_own() -> None:
    tokens, mask = case()
    projector = build("nested share")
    assert isinstance(projector, NestedProjector)
    found = projector(tokens, mask)
    assert torch.equal(found, projector.project(tokens, 2))
    with torch.no_grad():
        projector.fc1.weight[2:] = torch.nan
        projector.fc2.weight[:, 2:] = torch.nan
    assert torch.equal(projector(tokens, mask), found)
    with pytest.raises(ConfigError, match="11 of 10 hidden units"):
        projector.project(tokens, 11)


@pytest.mark.parametrize("name", ["mlp", "mlp-silu", "nested"])
def test_one_hidden_unit_is_one(name: str) -> None:
    projector = build_projector((name, {"hidden": 1}), 4, 5, seed=0)
    layers = [module for module in projector.modules() if isinstance(module, torch.nn.Linear)]
    assert layers[0].out_features == 1, "1 is a width, and not the default"
    assert layers[-1].in_features == 1
    tokens, mask = case()
    assert projector(tokens, mask).shape == (*tokens.shape[:-1], 5)


def test_fault_84_a_convolution_starts_as_the_released_one_does() -> None:
    """The released code draws its linear layers after Xavier and leaves its convolution as torch made it."""
    for kernel in (1, 3):
        made = build_projector(("conv", {"kernel": kernel}), 24, 40, 3)
        with own_rng(seed=3):
            released = nn.Conv2d(24, 40, kernel, padding=kernel // 2)
        assert torch.equal(made.conv.weight, released.weight)
        assert torch.equal(made.conv.bias, released.bias)
    linear = build_projector("linear", 24, 40, 3)
    assert not bool(linear.fc.bias.any())
    assert float(linear.fc.weight.detach().abs().max()) > 1 / 24**0.5, "Xavier's bound is wider here"
