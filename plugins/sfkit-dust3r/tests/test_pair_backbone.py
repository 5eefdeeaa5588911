"""The backbone: what is paired with what, what is computed, and in which precision."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_backbones.blocks import cast_products
from torch.utils._python_dispatch import TorchDispatchMode

from sfkit.errors import ShapeError
from sfkit.testing.checks import assert_rounded, float64, widened


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Any]) -> Any:
    return make_backbone()


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def calls(stack: Any) -> list[int]:
    """Counts the runs of each block."""
    counts = [0] * len(stack)
    for i, block in enumerate(stack):
        block.register_forward_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    return counts


# ------------------------------------------------------------------------------------------------------------- pairing


@given(v=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3), shared=st.booleans())
@settings(max_examples=8)
def test_each_view_is_paired_with_the_first(
    make_backbone: Callable[..., Any], reference_of: Callable[..., Any], v: int, rows: int, columns: int, shared: bool
) -> None:
    backbone = widened(make_backbone(patch=4, shared_decoder=shared))
    reference = reference_of(backbone)
    views = widened(random_images(1, v, 3, 4 * rows, 4 * columns))
    with torch.no_grad(), float64():
        layers = backbone(views, [1, 2, 3])
        both = backbone(views, [3], "both")[0]
        encoded = backbone(views, [1, 2], "encoder")
    pairs = [reference.pair(views[0, 0], views[0, i]) for i in (range(1, v) if v > 1 else [0])]
    for k, found in enumerate(layers, 1):
        assert found.shape == (1, v, rows, columns, 24)
        first = torch.stack([one[k] for one, _ in pairs]).mean(0)
        wanted = torch.stack([first, *(two[k] for _, two in pairs if v > 1)])
        assert_rounded(found[0].flatten(1, 2), wanted)
    for k, found in enumerate(encoded):
        wanted = torch.stack([reference.encode(view)[k] for view in views[0]])
        assert_rounded(found[0].flatten(1, 2), wanted)
    assert_rounded(both, torch.cat((encoded[1], layers[2]), -1))


@given(order=st.permutations([1, 2, 3]))
@settings(max_examples=6)
def test_the_order_of_the_others_does_not_matter(backbone: Any, order: list[int]) -> None:
    views = random_images(2, 4, 3, 32, 48)
    with torch.no_grad():
        (before,), (after,) = (backbone(views[:, list(chosen)], [3]) for chosen in ((0, 1, 2, 3), (0, *order)))
    assert_rounded(after, before[:, [0, *order]])


def test_the_first_view_is_special(backbone: Any) -> None:
    views = random_images(1, 2, 3, 32, 48)
    with torch.no_grad():
        (before,), (after,) = backbone(views, [3]), backbone(views.flip(1), [3])
        (encoded,), (flipped,) = backbone(views, [2], "encoder"), backbone(views.flip(1), [2], "encoder")
    assert (before - after.flip(1)).abs().max() > 0.1
    assert_rounded(encoded, flipped.flip(1))


def test_identical_views_differ_by_their_decoder_alone(backbone: Any, make_backbone: Callable[..., Any]) -> None:
    views = random_images(1, 1, 3, 32, 32).expand(1, 3, 3, 32, 32)
    with torch.no_grad():
        (two,), (one,) = backbone(views, [3]), make_backbone(shared_decoder=True)(views, [3])
        (alone,) = backbone(views[:, :1], [3])
    assert (two[:, 0] - two[:, 1]).abs().max() > 0.1
    assert_rounded(two[:, 1], two[:, 2])
    assert_rounded(one[:, 0], one[:, 1])
    assert_rounded(two[:, :1], alone)


def test_a_layer_reads_the_pair_as_the_layer_before_left_it(backbone: Any) -> None:
    backbone = copy.deepcopy(backbone)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for stack in (backbone.dec_blocks, backbone.dec_blocks2):
        stack[1].register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    with torch.no_grad():
        backbone(random_images(1, 2, 3, 32, 32), [3])
    (first, memory_of_first), (second, memory_of_second) = seen
    assert torch.equal(first, memory_of_second)
    assert torch.equal(second, memory_of_first)


def test_batches_and_views_are_independent_of_each_other(backbone: Any) -> None:
    views = random_images(3, 3, 3, 32, 32)
    with torch.no_grad():
        (all_at_once,) = backbone(views, [3])
        one_by_one = torch.cat([backbone(sample[None], [3])[0] for sample in views])
    assert_rounded(all_at_once, one_by_one)


# ----------------------------------------------------------------------------------------------- no more than asked for


@given(layers=st.lists(st.integers(1, 3), min_size=1, max_size=4), v=st.integers(1, 3))
@settings(max_examples=12)
def test_any_choice_of_layers_gives_the_same_layers(backbone: Any, layers: list[int], v: int) -> None:
    views = random_images(1, v, 3, 32, 16)
    with torch.no_grad():
        every, chosen = backbone(views, [1, 2, 3], "both"), backbone(views, layers, "both")
    for layer, found in zip(layers, chosen, strict=True):
        assert torch.equal(found, every[layer - 1])


@pytest.mark.parametrize(
    ("target", "layers", "encoder", "first", "second"),
    [
        ("encoder", [1], [1, 0], [0, 0, 0], [0, 0, 0]),
        ("encoder", [1, 2], [1, 1], [0, 0, 0], [0, 0, 0]),
        ("decoder", [1], [1, 1], [1, 0, 0], [1, 0, 0]),
        ("both", [2], [1, 1], [1, 1, 0], [1, 1, 0]),
        ("decoder", [3, 1], [1, 1], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_no_deeper_layer_runs_and_each_image_is_encoded_once(
    backbone: Any, target: Any, layers: list[int], encoder: list[int], first: list[int], second: list[int]
) -> None:
    backbone = copy.deepcopy(backbone)
    counts = [calls(stack) for stack in (backbone.enc_blocks, backbone.dec_blocks, backbone.dec_blocks2)]
    encoded: list[int] = []
    backbone.patch_embed.register_forward_pre_hook(lambda _, given: encoded.append(len(given[0])))
    with torch.no_grad():
        backbone(random_images(2, 3, 3, 32, 32), layers, target)
    assert counts == [encoder, first, second]
    assert encoded == [6]


def test_a_single_view_spares_the_partners_last_layer(backbone: Any) -> None:
    backbone = copy.deepcopy(backbone)
    counts = [calls(stack) for stack in (backbone.dec_blocks, backbone.dec_blocks2)]
    with torch.no_grad():
        backbone(random_images(1, 1, 3, 32, 32), [3])
    assert counts == [[1, 1, 1], [1, 1, 0]]


def test_an_encoder_alone_has_no_decoder(make_backbone: Callable[..., Any]) -> None:
    alone = make_backbone(dec_layers=0)
    assert not [key for key in alone.state_dict() if key.startswith("dec")]


# ------------------------------------------------------------------------------------------------ precision and running


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")), name
        return func(*args, **(kwargs or {}))


def test_the_forward_never_waits_for_the_device(backbone: Any) -> None:
    with torch.no_grad(), NoWaiting():
        backbone(random_images(1, 3, 3, 32, 32), [1, 3], "both")


def test_tables_made_under_inference_mode_serve_training_too(make_backbone: Callable[..., Any]) -> None:
    backbone, views = make_backbone(), random_images(1, 2, 3, 32, 32)
    with torch.inference_mode():
        (inferred,) = backbone(views, [3])
    assert not any(table.is_inference() for tables in backbone._ropes._made.values() for table in tables)
    (trained,) = backbone(views, [3])
    trained.square().mean().backward()
    assert backbone.dec_blocks2[0].cross_attn.projk.weight.grad.abs().max() > 0
    assert_rounded(inferred, trained)


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_bfloat16_products_are_near(make_backbone: Callable[..., Any], residual: torch.dtype) -> None:
    exact, rounded = make_backbone(), make_backbone()
    cast_products(rounded, torch.bfloat16)
    assert rounded.enc_blocks[0].norm1.weight.dtype == torch.float32
    views = random_images(2, 3, 3, 48, 32)
    with torch.no_grad():
        for target, layers in (("encoder", [1, 2]), ("decoder", [1, 2, 3]), ("both", [3])):
            pairs = zip(exact(views, layers, target), rounded(views, layers, target, residual), strict=True)
            for a, b in pairs:
                assert torch.nn.functional.cosine_similarity(a, b.float(), -1).min() > 0.99


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.filterwarnings("default")
def test_blocks_compile_without_a_break(make_backbone: Callable[..., Any]) -> None:
    backbone, views = make_backbone(), random_images(1, 2, 3, 32, 48)
    with torch.inference_mode():
        (plain,) = backbone(views, [3])
        for block in itertools.chain(backbone.enc_blocks, backbone.dec_blocks, backbone.dec_blocks2):
            block.compile(backend="eager", fullgraph=True)
        (compiled,) = backbone(views, [3])
    assert_rounded(compiled, plain)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 2, 3, 40, 32), "40x32 pixels, which does not divide into patches of 16"),
        ((1, 0, 3, 32, 32), "no view"),
        ((1, 2, 4, 32, 32), "expected"),
    ],
)
def test_images_that_do_not_fit(backbone: Any, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        backbone(torch.zeros(shape), [1])
