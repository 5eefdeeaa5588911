"""The backbone: what it computes, how little it keeps, and under which modes it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.patches import resize_positions
from sfkit_backbones.weights import without_weights
from sfkit_depth_anything.backbone import DepthAnythingBackbone
from sfkit_depth_anything.config import BASE, GIANT, TINY, TINY_GATED, DepthAnythingConfig
from sfkit_depth_anything.tables import joint_rotation, scaled_positions, view_rotation
from torch import nn

from sfkit.errors import ShapeError
from sfkit.testing.checks import assert_rounded

Make = Callable[..., DepthAnythingBackbone]
CONFIGS = st.sampled_from([TINY, TINY_GATED, TINY.model_copy(update={"alt_start": 0, "num_layers": 3})])


@settings(max_examples=25)
@given(
    CONFIGS,
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(["both", "local", "global"]),
    st.data(),
)
def test_shapes(
    backbone_of: Make,
    config: DepthAnythingConfig,
    b: int,
    v: int,
    grid: tuple[int, int],
    half: str,
    data: st.DataObject,
) -> None:
    layers = data.draw(st.lists(st.integers(1, config.num_layers), min_size=1, max_size=4))
    images = torch.randn(b, v, 3, grid[0] * 14, grid[1] * 14)
    found = backbone_of(config)(images, layers, half=half)
    width = config.dim * (2 if half == "both" else 1)
    assert [tuple(feature.shape) for feature in found] == [(b, v, *grid, width)] * len(layers)
    assert all(feature.isfinite().all() for feature in found)


@settings(max_examples=15)
@given(CONFIGS, st.sampled_from(["both", "local", "global"]), st.data())
def test_some_layers_are_as_all_layers(
    backbone_of: Make, config: DepthAnythingConfig, half: str, data: st.DataObject
) -> None:
    backbone, images = backbone_of(config), torch.randn(1, 3, 3, 28, 42)
    every = backbone(images, list(range(1, config.num_layers + 1)), half=half)
    wanted = data.draw(st.lists(st.integers(1, config.num_layers), min_size=1))
    for layer, feature in zip(wanted, backbone(images, wanted, half=half), strict=True):
        assert torch.equal(feature, every[layer - 1])


def test_the_halves_are_the_halves_of_both(backbone_of: Make) -> None:
    backbone, images, layers = backbone_of(), torch.randn(2, 2, 3, 28, 28), [1, 3, 4, 6]
    both, local, joint = (backbone(images, layers, half=half) for half in ("both", "local", "global"))
    for whole, first, second in zip(both, local, joint, strict=True):
        assert torch.equal(whole, torch.cat((first, second), -1))


def test_the_local_half_is_the_latest_block_within_views(backbone_of: Make) -> None:
    backbone, images = backbone_of(), torch.randn(1, 2, 3, 28, 28)
    local = backbone(images, [1, 2, 3, 4, 5, 6], half="local")
    # Blocks 3 and 5, layers 4 and 6, join the views.
    assert torch.equal(local[3], local[2])
    assert torch.equal(local[5], local[4])
    assert not torch.equal(local[1], local[0])
    (joint,) = backbone(images, [2], half="global")
    assert_rounded(joint, backbone.norm(local[1]))


def test_blocks_behind_the_last_layer_do_not_run(backbone_of: Make) -> None:
    backbone = backbone_of(seed=3)
    runs: list[int] = []
    for index, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, index=index: runs.append(index))
    backbone(torch.randn(1, 2, 3, 28, 28), [2, 4])
    assert runs == [0, 1, 2, 3]


def test_views_are_joined_from_the_first_joint_block_on(backbone_of: Make) -> None:
    backbone, images = backbone_of(), torch.randn(1, 3, 3, 28, 28)
    changed = images.clone()
    changed[:, 2] += 1
    before, after = (backbone(x, [1, 2, 3, 4], reference="first") for x in (images, changed))
    moved = [(x - y)[:, 0].abs().max() for x, y in zip(before, after, strict=True)]
    assert moved[:3] == [0, 0, 0]
    assert moved[3] > 0.01


def test_positions_are_scaled_as_dinov2_does() -> None:
    table = torch.randn(1, 37 * 37, 6)
    assert scaled_positions(table, (37, 37)) is table
    found = scaled_positions(table, (36, 27))
    assert found.shape == (1, 36 * 27, 6)
    # Not the antialiased resize to an explicit size that VGGT's backbone has.
    assert (found - resize_positions(table, (36, 27))).abs().max() > 0.1


@pytest.mark.parametrize("grid", [(cells, 50 - cells) for cells in range(1, 50)])
def test_positions_fit_every_grid(grid: tuple[int, int]) -> None:
    assert scaled_positions(torch.zeros(1, 37 * 37, 1), grid).shape == (1, grid[0] * grid[1], 1)


def test_joint_blocks_rotate_all_patches_of_all_views_equally() -> None:
    cos, sin = joint_rotation((2, 3), 2, 16)
    assert cos.shape == (14, 16)
    assert (cos[[0, 7]] == 1).all()
    assert (sin[[0, 7]] == 0).all()
    patches = torch.cat((cos[1:7], cos[8:]))
    assert (patches == patches[0]).all()
    within, _ = view_rotation((2, 3), 16)
    assert torch.equal(within[1], patches[0])  # row 1, column 1
    assert not torch.equal(within[2], patches[0])


def test_it_runs_in_every_mode_and_tables_serve_all(backbone_of: Make) -> None:
    backbone = backbone_of(seed=4)
    images = torch.randn(1, 3, 3, 28, 42)
    with torch.inference_mode():
        (seen,) = backbone(images, [6])
    wanted = images.clone().requires_grad_()
    (trained,) = backbone(wanted, [6])
    trained.square().sum().backward()
    assert torch.equal(seen, trained)
    assert wanted.grad is not None
    assert wanted.grad.isfinite().all()


def test_new_weights_are_not_met_with_old_tables(backbone_of: Make) -> None:
    backbone, other, images = backbone_of(seed=5), backbone_of(seed=6), torch.randn(1, 1, 3, 28, 42)
    backbone(images, [1])
    backbone.load_state_dict(other.state_dict())
    assert torch.equal(backbone(images, [1])[0], other(images, [1])[0])


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_bfloat16_stays_near(backbone_of: Make, residual: torch.dtype) -> None:
    images = torch.randn(2, 3, 3, 56, 42)
    exact = backbone_of(seed=8)(images, [3, 6], reference="first")
    backbone = backbone_of(seed=8)
    cast_products(backbone, torch.bfloat16)
    coarse = backbone(images, [3, 6], reference="first", residual=residual)
    for x, y in zip(exact, coarse, strict=True):
        assert y.dtype == torch.float32
        assert nn.functional.cosine_similarity(x, y, dim=-1).min() > 0.995


def test_blocks_compile_without_a_break(backbone_of: Make) -> None:
    backbone, images = backbone_of(seed=9), torch.randn(1, 3, 3, 28, 28)
    plain = backbone(images, [2, 6])
    for block in backbone.blocks:
        block.compile(backend="eager", fullgraph=True)
    for x, y in zip(plain, backbone(images, [2, 6]), strict=True):
        assert_rounded(x, y)


@pytest.mark.parametrize("config", [BASE, GIANT], ids=["base", "giant"])
def test_the_full_size_waits_for_no_device(config: DepthAnythingConfig) -> None:
    """Tensors without memory cannot be read: any look at a value would raise."""
    with without_weights():
        backbone = DepthAnythingBackbone(config)
        images = torch.zeros(1, 3, 3, 378, 504)
    (feature,) = backbone(images, [config.num_layers])
    assert feature.shape == (1, 3, 27, 36, 2 * config.dim)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 1, 3, 30, 28), "multiple|divide"), ((1, 0, 3, 28, 28), "no view"), ((1, 1, 4, 28, 28), "3, h, w")],
)
def test_images_of_a_wrong_shape(backbone_of: Make, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        backbone_of()(torch.zeros(shape), [1])
