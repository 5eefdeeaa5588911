"""The backbone: keys, layers, halves, tokens, the order of views, and what it keeps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.weights import without_weights
from sfkit_vggt import embedder
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import FULL, TINY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sfkit.errors import ShapeError
from sfkit.testing.checks import assert_rounded

FEW = settings(max_examples=10)
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))


def random_images(b: int, s: int, grid: tuple[int, int] = (4, 4), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, s, 3, grid[0] * 14, grid[1] * 14, generator=generator)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --------------------------------------------------------------------------------------------------------- full size


@pytest.fixture(scope="module")
def full() -> Aggregator:
    with without_weights():
        return Aggregator(FULL)


def test_the_full_backbone_has_the_published_size(full: Aggregator) -> None:
    def count(part: nn.Module) -> tuple[int, int]:
        state = part.state_dict()
        return len(state), sum(tensor.numel() for tensor in state.values())

    assert count(full) == (1210, 909_112_320)
    assert count(full.patch_embed) == (344, 304_372_736)
    assert count(full.frame_blocks) == count(full.global_blocks) == (432, 302_364_672)
    assert full.patch_embed.pos_embed.shape == (1, 1370, 1024)
    assert full.register_token.shape == (1, 2, 4, 1024)
    assert full.frame_blocks[23].attn.q_norm.weight.shape == (64,)  # type: ignore[union-attr]


def test_its_keys_and_shapes_are_those_of_the_checkpoint(full: Aggregator, shared: Path) -> None:
    listed = json.loads((shared / "facts" / "vggt_keys.json").read_text())["keys"]
    wanted = {key: tuple(shape) for key, shape in listed.items() if key.startswith("aggregator.")}
    assert {f"aggregator.{key}": tuple(value.shape) for key, value in full.state_dict().items()} == wanted
    heads = {key.split(".")[0] for key in listed if key not in wanted}
    from sfkit_vggt.teacher import VggtTeacher

    assert {pattern.removesuffix(".*") for pattern in VggtTeacher.ignored} == heads


# ----------------------------------------------------------------------------------------------- layers, halves, tokens


@given(layers=st.lists(st.integers(1, TINY.num_layers), min_size=1, max_size=5), grid=GRIDS, b=st.integers(1, 2))
@FEW
def test_any_layers_in_any_order_are_those_of_the_whole_run(
    backbone: Aggregator, layers: list[int], grid: tuple[int, int], b: int
) -> None:
    images = random_images(b, 2, grid)
    every = backbone(images, range(1, TINY.num_layers + 1))
    some = backbone(images, layers)
    assert [tuple(found.shape) for found in some] == [(b, 2, grid[0] * grid[1] + 5, 48)] * len(layers)
    for layer, found in zip(layers, some, strict=True):
        assert torch.equal(found, every[layer - 1])


@given(half=st.sampled_from(["both", "frame", "global"]), tokens=st.sampled_from(["patch", "camera", "register"]))
@FEW
def test_halves_and_tokens_are_cut_from_the_whole(backbone: Aggregator, half: Any, tokens: Any) -> None:
    images, layers = random_images(2, 3, (2, 3)), [3, 1]
    span = {"camera": slice(0, 1), "register": slice(1, 5), "patch": slice(5, None)}[tokens]
    channels = {"both": slice(None), "frame": slice(0, 24), "global": slice(24, None)}[half]
    part = backbone(images, layers, half=half, tokens=tokens)
    for found, whole in zip(part, backbone(images, layers), strict=True):
        assert torch.equal(found, whole[:, :, span, channels])
        assert found.untyped_storage().nbytes() == found.numel() * found.element_size(), "more is kept than handed out"


def test_even_one_token_of_one_view_keeps_nothing_else(backbone: Aggregator) -> None:
    (camera,) = backbone(random_images(1, 1), [2], half="frame", tokens="camera")
    assert camera.untyped_storage().nbytes() == 24 * 4


@pytest.fixture
def ran(backbone: Aggregator) -> Iterator[list[str]]:
    """Names of the alternating blocks, as they run."""
    names: list[str] = []
    parts = [(name, block) for name, block in backbone.named_modules() if name.count(".") == 1 and "_blocks." in name]
    hooks = [block.register_forward_hook(lambda *_, name=name: names.append(name)) for name, block in parts]
    yield names
    for hook in hooks:
        hook.remove()


def test_nothing_runs_beyond_the_last_layer(backbone: Aggregator, ran: list[str]) -> None:
    backbone(random_images(1, 2), [2, 1])
    assert ran == ["frame_blocks.0", "global_blocks.0", "frame_blocks.1", "global_blocks.1"]


def test_the_frame_half_of_the_last_layer_needs_no_global_block(backbone: Aggregator, ran: list[str]) -> None:
    backbone(random_images(1, 2), [1, 2], half="frame")
    assert ran == ["frame_blocks.0", "global_blocks.0", "frame_blocks.1"]


# ------------------------------------------------------------------------------------------------------------ the views


@given(order=st.permutations([1, 2, 3]), grid=GRIDS, seed=st.integers(0, 99))
@FEW
def test_all_views_but_the_first_may_come_in_any_order(
    backbone: Aggregator, order: list[int], grid: tuple[int, int], seed: int
) -> None:
    images = random_images(1, 4, grid, seed)
    views = [0, *order]
    plain, moved = backbone(images, [1, 4]), backbone(images[:, views], [1, 4])
    for before, after in zip(plain, moved, strict=True):
        assert_rounded(after, before[:, views])


@given(first=st.integers(1, 2), seed=st.integers(0, 99))
@FEW
def test_which_view_is_first_changes_everything(backbone: Aggregator, first: int, seed: int) -> None:
    images = random_images(1, 3, seed=seed)
    views = [first, *(view for view in range(3) if view != first)]
    (plain,), (moved,) = backbone(images, [4]), backbone(images[:, views], [4])
    difference = (moved - plain[:, views]).abs().amax((2, 3))
    assert (difference > 0.1).all(), difference


def test_samples_do_not_see_each_other(backbone: Aggregator) -> None:
    images = random_images(3, 2)
    (together,) = backbone(images, [4])
    for sample in range(3):
        (alone,) = backbone(images[sample : sample + 1], [4])
        assert_rounded(together[sample], alone[0])


# --------------------------------------------------------------------------------------------------------- the numerics


@given(products=st.booleans(), residual=st.sampled_from([torch.float32, torch.bfloat16]), grid=GRIDS)
@FEW
def test_lower_precision_stays_near(
    new_backbone: Callable[..., Aggregator], products: bool, residual: torch.dtype, grid: tuple[int, int]
) -> None:
    images = random_images(1, 2, grid)
    (wanted,) = new_backbone()(images, [4])
    coarse = new_backbone(residual=residual)
    if products:
        cast_products(coarse, torch.bfloat16)
    (found,) = coarse(images, [4])
    assert found.dtype == residual
    assert torch.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.999


def test_only_products_are_cast(new_backbone: Callable[..., Aggregator]) -> None:
    backbone = new_backbone()
    cast_products(backbone, torch.bfloat16)
    kept = {name for name, value in backbone.named_parameters() if value.dtype == torch.float32}
    assert all(name.endswith(("weight", "bias")) for name, value in backbone.named_parameters() if name not in kept)
    assert {"camera_token", "patch_embed.pos_embed", "patch_embed.norm.weight", "frame_blocks.0.ls1.gamma"} <= kept
    assert {"frame_blocks.0.attn.q_norm.weight", "global_blocks.0.norm2.bias"} <= kept


def test_gradients_flow_where_they_are_wanted(new_backbone: Callable[..., Aggregator]) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        backbone = new_backbone().requires_grad_(True)
        backbone.patch_embed.mask_token.requires_grad_(False)
        images = random_images(1, 2, (2, 3)).requires_grad_(True)
        for _ in range(2):  # a table kept from a graph that is gone would be an error
            backbone(images, [4])[0].square().sum().backward()
        assert images.grad is not None
        missing = [name for name, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
        assert not missing


@pytest.mark.slow
def test_compiled_blocks_give_the_same(new_backbone: Callable[..., Aggregator]) -> None:
    backbone, plain = new_backbone(), new_backbone()
    for blocks in (backbone.patch_embed.blocks, backbone.frame_blocks, backbone.global_blocks):
        blocks[0].compile(backend="eager", fullgraph=True)
    for images in (random_images(1, 2), random_images(2, 1, (2, 3))):
        assert torch.equal(backbone(images, [1])[0], plain(images, [1])[0])
    torch._dynamo.reset()


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for a device: values read by the host, and copies between devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.partition(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "item", "equal"), f"{name} waits for the device"
        assert "device" not in (kwargs or {}), f"{name} copies to a device"
        return function(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device(new_backbone: Callable[..., Aggregator]) -> None:
    backbone, images = new_backbone(), random_images(1, 2, (2, 3))
    backbone(images, [2])  # tables are made, and may be copied, once
    with NoWaiting():
        backbone(images, [2])


# ----------------------------------------------------------------------------------------------------------- the tables


def test_positions_are_resized_once_for_each_grid(new_backbone: Callable[..., Aggregator]) -> None:
    backbone = new_backbone()
    with mock.patch.object(embedder, "resize_positions", wraps=embedder.resize_positions) as resize:
        for grid in ((2, 3), (2, 3), (3, 2), (2, 3)):
            backbone(random_images(1, 2, grid), [1])
    assert [call.args[1] for call in resize.call_args_list] == [(2, 3), (3, 2)]


def test_the_native_grid_is_left_alone(backbone: Aggregator) -> None:
    assert torch.equal(backbone.patch_embed.positions((4, 4)), backbone.patch_embed.pos_embed[:, 1:])
    assert not torch.equal(backbone.patch_embed.positions((2, 8)), backbone.patch_embed.pos_embed[:, 1:])


def test_other_weights_have_other_positions(new_backbone: Callable[..., Aggregator]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        backbone = new_backbone()
        before = backbone.patch_embed.positions((2, 3)).clone()
        backbone.patch_embed.pos_embed.mul_(2)
        assert_rounded(backbone.patch_embed.positions((2, 3)), 2 * before)
        backbone.patch_embed.pos_embed = nn.Parameter(torch.ones(1, 17, 24), requires_grad=False)
        assert_rounded(backbone.patch_embed.positions((2, 3)), torch.ones(1, 6, 24))


def test_tables_are_ordinary_tensors_and_few(new_backbone: Callable[..., Aggregator]) -> None:
    backbone = new_backbone()
    for grid in itertools.product(range(1, 5), range(1, 7)):
        backbone(random_images(1, 2, grid), [1])
    cos, sin = backbone.rope((4, 6), 2, torch.device("cpu"))
    assert not cos.is_inference()
    assert not sin.is_inference()
    assert not backbone.patch_embed.positions((4, 6)).is_inference()
    assert len(backbone._ropes._made) == len(backbone.patch_embed._positions._made) == 16


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 2, 3, 56, 57), r"56x57 pixels, which does not divide into patches of 14"),
        ((2, 3, 56, 56), r"expected \(b, s, 3, h, w\)"),
        ((1, 2, 4, 56, 56), "expected"),
        ((1, 0, 3, 56, 56), "no view"),
    ],
)
def test_images_of_another_form_are_an_error(backbone: Aggregator, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        backbone(torch.zeros(shape), [1])
