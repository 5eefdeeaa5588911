"""The reference view: chosen by content for each sample, and marked by its token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_depth_anything.backbone import DepthAnythingBackbone
from sfkit_depth_anything.config import TINY, TINY_GATED, DepthAnythingConfig
from sfkit_depth_anything.reference import saddle_balanced
from torch import Tensor

from sfkit.testing.checks import assert_rounded


def by_hand(tokens: list[list[float]]) -> int:
    """The choice for one sample, number by number."""

    def norm(c: list[float]) -> float:
        return math.sqrt(sum(value * value for value in c))

    units = [[value / norm(c) for value in c] for c in tokens]
    columns: list[list[float]] = [[], [], []]
    for c, u in zip(tokens, units, strict=True):
        cosines = [sum(a * b for a, b in zip(u, other, strict=True)) for other in units]
        mean = sum(u) / len(u)
        columns[0].append((sum(cosines) - 1) / (len(tokens) - 1))
        columns[1].append(norm(c))
        columns[2].append(sum((value - mean) ** 2 for value in u) / (len(u) - 1))
    distance = [0.0] * len(tokens)
    for column in columns:
        low, high = min(column), max(column)
        for view, score in enumerate(column):
            distance[view] += abs((score - low) / (high - low + 1e-8) - 0.5)
    return distance.index(min(distance))


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(3, 6), st.integers(2, 24))
def test_the_choice_is_that_of_the_formula(seed: int, views: int, dim: int) -> None:
    tokens = torch.randn(4, views, dim, generator=torch.Generator().manual_seed(seed))
    assert saddle_balanced(tokens).tolist() == [by_hand(sample.double().tolist()) for sample in tokens]


def test_views_alike_leave_the_first() -> None:
    assert saddle_balanced(torch.ones(2, 3, 8)).tolist() == [0, 0]


def moved(images: Tensor, chosen: list[int]) -> tuple[Tensor, list[list[int]]]:
    """Each sample's reference brought to the front, and the order that was made."""
    views = images.shape[1]
    orders = [[view, *(i for i in range(views) if i != view)] for view in chosen]
    return torch.stack([sample[order] for sample, order in zip(images, orders, strict=True)]), orders


@pytest.mark.parametrize("config", [TINY, TINY_GATED], ids=["tiny", "gated"])
@pytest.mark.parametrize("views", [3, 4])
def test_choosing_is_moving_the_reference_to_the_front_and_back(
    backbone_of: Callable[..., DepthAnythingBackbone],
    config: DepthAnythingConfig,
    views: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone, images = backbone_of(config), torch.randn(5, views, 3, 42, 56)
    seen: list[list[int]] = []

    def spy(tokens: Tensor) -> Tensor:
        chosen = saddle_balanced(tokens)
        seen.append(chosen.tolist())
        return chosen

    monkeypatch.setattr("sfkit_depth_anything.backbone.saddle_balanced", spy)
    layers = list(range(1, config.num_layers + 1))
    auto = backbone(images, layers)
    (chosen,) = seen
    assert len(set(chosen)) > 1
    front, orders = moved(images, chosen)
    for found, first in zip(auto, backbone(front, layers, reference="first"), strict=True):
        for sample, order in enumerate(orders):
            assert_rounded(found[sample, order], first[sample])


def test_each_sample_chooses_by_itself(backbone_of: Callable[..., DepthAnythingBackbone]) -> None:
    backbone, images = backbone_of(), torch.randn(4, 3, 3, 28, 42)
    (together,) = backbone(images, [6])
    for sample in range(4):
        (alone,) = backbone(images[sample : sample + 1], [6])
        assert_rounded(together[sample], alone[0])


@settings(max_examples=15)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_with_a_chosen_reference_views_have_no_order(
    backbone_of: Callable[..., DepthAnythingBackbone], order: list[int], seed: int
) -> None:
    images = torch.randn(2, 4, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
    (plain,), (permuted,) = backbone_of()(images, [6]), backbone_of()(images[:, order], [6])
    assert_rounded(plain[:, order], permuted)


@settings(max_examples=10)
@given(st.permutations(range(1, 4)))
def test_with_the_first_as_reference_the_others_have_no_order(
    backbone_of: Callable[..., DepthAnythingBackbone], order: list[int]
) -> None:
    images, shuffled = torch.randn(1, 4, 3, 28, 28), [0, *order]
    (plain,), (permuted,) = (backbone_of()(x, [6], reference="first") for x in (images, images[:, shuffled]))
    assert_rounded(plain[:, shuffled], permuted)


def test_which_view_is_first_counts_for_two(backbone_of: Callable[..., DepthAnythingBackbone]) -> None:
    backbone, images = backbone_of(), torch.randn(1, 2, 3, 28, 28)
    (plain,), (turned,) = backbone(images, [6]), backbone(images.flip(1), [6])
    assert (plain - turned.flip(1)).abs().max() > 0.1
    (chosen,), (first,) = backbone(images, [6]), backbone(images, [6], reference="first")
    assert torch.equal(chosen, first)
