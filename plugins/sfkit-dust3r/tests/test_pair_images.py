"""From the student's views to what the network sees, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_backbones.placement import Placement
from sfkit_dust3r.image_geometry import official_placement
from sfkit_dust3r.resampling import resampling_matrix, resize
from sfkit_dust3r.teacher import DUSt3RTeacher

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.testing.checks import assert_rounded, check_correspondence
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.views.types import Views

CPU = torch.device("cpu")


def views_of(images: torch.Tensor) -> Views:
    b, v, _, h, w = images.shape
    return Views(images, torch.ones(b, v, h, w, dtype=torch.bool), tuple(f"cam{i}" for i in range(v)))


def tiny(**options: Any) -> DUSt3RTeacher:
    return DUSt3RTeacher({"config": "tiny", **options})


# ---------------------------------------------------------------------------------------------------------- resampling


@given(
    old=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    new=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kernel=st.sampled_from(["bicubic", "lanczos"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_resizing_is_pillows_within_its_rounding(old: Any, new: Any, kernel: Any, seed: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    wanted = image_module.fromarray(pixels).resize(new[::-1], getattr(image_module.Resampling, kernel.upper()))
    found = resize(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, new, kernel) * 255
    difference = (found - torch.from_numpy(np.array(wanted)).permute(2, 0, 1).float()).abs()
    # Pillow rounds after each of two passes, and the second may enlarge the first's rounding.
    assert difference.max() < 1.6
    assert difference.mean() < 0.5


@given(old=st.integers(1, 90), new=st.integers(1, 90), kernel=st.sampled_from(["bicubic", "lanczos"]))
@settings(max_examples=60)
def test_weights_sum_to_one_and_are_symmetric(old: int, new: int, kernel: Any) -> None:
    weights = resampling_matrix(old, new, kernel, CPU)
    assert_rounded(weights.sum(1), torch.ones(new))
    assert_rounded(weights, weights.flip(0, 1))
    if old == new:
        assert_rounded(weights, torch.eye(new))


@pytest.mark.parametrize(("view", "kernel"), [((300, 400), "lanczos"), ((60, 80), "bicubic")])
def test_shrinking_is_lanczos_and_enlarging_bicubic(view: tuple[int, int], kernel: Any) -> None:
    teacher, images = tiny(), torch.rand(1, 2, 3, *view)
    placement = teacher.placement(view)
    assert placement == Placement((160, 224), (160, 224))  # 168 rows are no multiple of 16, and 10.5 rounds to 10
    assert torch.equal(teacher.paint(images, placement), resize(images, (160, 224), kernel))
    plain = tiny(antialias=False).paint(images, placement)
    assert plain.shape == (1, 2, 3, 160, 224)
    assert not torch.allclose(plain, resize(images, (160, 224), kernel))


# ------------------------------------------------------------------------------------------------------- image geometry


@pytest.mark.parametrize(
    ("view", "side", "square_ok", "wanted"),
    [
        ((480, 640), 512, False, Placement((384, 512), (384, 512))),
        ((640, 480), 512, False, Placement((512, 384), (512, 384))),
        ((224, 224), 512, False, Placement((384, 512), (512, 512), -64)),
        ((224, 224), 512, True, Placement((512, 512), (512, 512))),
        ((480, 854), 512, False, Placement((288, 512), (288, 512))),
        ((300, 500), 512, False, Placement((304, 512), (307, 512), -1)),
        ((480, 640), 224, False, Placement((224, 224), (224, 299), 0, -37)),
        ((640, 480), 224, False, Placement((224, 224), (299, 224), -37)),
        ((64, 64), 224, False, Placement((224, 224), (224, 224))),
        ((1, 200), 512, False, Placement((16, 512), (16, 512))),
    ],
)
def test_official_image_geometry(view: Any, side: int, square_ok: bool, wanted: Placement) -> None:
    assert official_placement(view, side, 16, square_ok=square_ok) == wanted


@given(view=st.tuples(st.integers(1, 700), st.integers(1, 700)), side=st.sampled_from([224, 256, 384, 512]))
def test_official_image_geometry_only_crops(view: tuple[int, int], side: int) -> None:
    placed = official_placement(view, side, 16, square_ok=False)
    for canvas, scaled, offset in zip(placed.canvas, placed.scaled, (placed.top, placed.left), strict=True):
        assert canvas % 16 == 0
        assert 0 < canvas <= scaled
        assert scaled - canvas in (-2 * offset, -2 * offset + 1)


def test_a_square_view_loses_no_token_by_default() -> None:
    for config, side in (("512-dpt", 512), ("512-linear", 512), ("224-linear", 224), ("tiny", 224)):
        teacher = DUSt3RTeacher({"config": config})
        assert teacher.placement((224, 224)) == Placement((side, side), (side, side))


def test_official_image_geometry_refuses_another_fit() -> None:
    with pytest.raises(ConfigError, match="crops by itself"):
        tiny(image_geometry="official", fit="pad")


@pytest.mark.parametrize("image_geometry", ["whole", "official"])
def test_padding_and_letterbox_are_gray(image_geometry: str) -> None:
    teacher = tiny(image_geometry=image_geometry)
    backbone = teacher.load(CPU)
    seen: list[torch.Tensor] = []
    backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    views = views_of(torch.rand(1, 1, 3, 224, 224))
    views.valid[..., :32, :] = False
    teacher.encode(backbone, views, [1], (14, 14))
    assert (seen[0][..., :32, :] == 0).all()  # mid-gray in [-1, 1]


# ------------------------------------------------------------------------------------------------------------- faults


def brighten(batch: Any, view: int, box: tuple[slice, slice]) -> Any:
    images = batch["images"].clone()
    images[:, view, :, box[0], box[1]] = 1 - images[:, view, :, box[0], box[1]]
    return {**batch, "images": images}


def test_fault_20_a_patch_moves_its_own_cell_of_an_oblong_view() -> None:
    policy = TinyPolicy(patch=8)
    teacher = ("dust3r", {"config": "tiny", "size": 96, "target": "encoder"})
    policy = SpatialForcing.wrap(policy, teacher, adapter=TinyAdapter(policy), student_layer=0, teacher_layer=1).train()
    batch = tiny_batch(b=1, geometry=False)
    batch["images"] = torch.rand(1, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    handle = policy.spatial_forcing
    (found,) = handle.runners[0].features(handle.adapter.views(ForwardCall({"batch": batch}, None)), [1], (4, 6))
    assert found.grid == (4, 6)
    check_correspondence(policy, batch, brighten)


def test_fault_20_tokens_rotate_by_row_then_column(
    make_backbone: Callable[..., Any], reference_of: Callable[..., Any]
) -> None:
    backbone = make_backbone(patch=4)
    images = torch.rand(1, 2, 3, 8, 20) * 2 - 1
    with torch.no_grad():
        (encoded,), (decoded,) = backbone(images, [2], "encoder"), backbone(images, [3])
    reference = reference_of(backbone)
    one, two = reference.pair(*images[0])
    wanted = torch.stack((one[0], two[0])), torch.stack((one[3], two[3]))
    for found, right in zip((encoded, decoded), wanted, strict=True):
        assert (found[0].flatten(1, 2) - right).abs().max() < 1e-4


@pytest.mark.parametrize("target", ["encoder", "decoder"])
def test_fault_19_official_crops_are_masked_the_rest_in_place(
    target: str,
) -> None:
    # The network sees 192x256 of a square; the student's grid is 16x16.
    teacher = tiny(image_geometry="official", size=256, target=target)
    backbone = teacher.load(CPU)
    (found,) = teacher.encode(backbone, views_of(torch.rand(2, 2, 3, 128, 128)), [1], (16, 16))
    assert found.grid == (16, 16)
    assert found.mask[:, :, 2:14].all()
    assert not found.mask[:, :, :2].any()
    assert not found.mask[:, :, 14:].any()


def test_fault_19_a_wide_view_keeps_its_rows_and_columns() -> None:
    images = torch.rand(1, 1, 3, 32, 64)
    for options, grid in (({}, (4, 8)), ({"fit": "pad"}, (4, 8)), ({"fit": "stretch"}, (8, 8))):
        teacher = tiny(size=128, target="encoder", **options)
        backbone = teacher.load(CPU)
        (before,) = teacher.encode(backbone, views_of(images), [1], (4, 8))
        assert before.grid == grid
        changed = images.clone()
        changed[..., 0:8, 56:64] = 1 - changed[..., 0:8, 56:64]  # the upper right eighth
        (after,) = teacher.encode(backbone, views_of(changed), [1], (4, 8))
        moved = (after.values - before.values).norm(dim=-1)[0, 0]
        row, column = divmod(int(moved.argmax()), grid[1])
        assert (row < 2, column) == (True, 7)


@pytest.mark.parametrize("name", ["dust3r", "mast3r"])
@pytest.mark.parametrize("target", ["encoder", "decoder", "both"])
def test_fault_26_images_are_scaled_to_minus_one_to_one_once(name: str, target: str) -> None:
    from sfkit.factory.components import build_teacher

    teacher = build_teacher((name, {"config": "tiny", "target": target, "size": 32}))
    backbone: Any = teacher.load(CPU)
    seen: list[torch.Tensor] = []
    backbone.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    images = torch.rand(2, 2, 3, 32, 32)
    images[0, 0, :, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    teacher.encode(backbone, views_of(images), [1], (2, 2))
    assert len(seen) == 1
    assert_rounded(seen[0], (images.flatten(0, 1) - 0.5) / 0.5)


def test_fault_26_images_that_are_normalized_already_are_refused() -> None:
    teacher = tiny(size=32)
    backbone = teacher.load(CPU)
    for images in (torch.rand(1, 1, 3, 32, 32) * 2 - 1, torch.rand(1, 1, 3, 32, 32) * 255):
        with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
            tiny(size=32).encode(backbone, views_of(images), [1], (2, 2))
    broken = torch.rand(1, 1, 3, 32, 32)
    broken[0, 0, 0, 3, 3] = torch.nan
    with pytest.raises(ViewsError, match="NaN"):
        teacher.encode(backbone, views_of(broken), [1], (2, 2))
