"""Images of any layout and normalization become views in [0, 1], and a wrong declaration is noticed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfkit.errors import ConfigError, ViewsError
from sfkit.policies.generic import GenericOptions, MeanStd
from sfkit.policies.generic.pixels import NORMALIZATIONS, check_pixels, to_views, undo


def options(**fields: Any) -> GenericOptions:
    views = fields.get("grid", (2, 2, 2))
    rest = {"blocks": "x", "tokens": {"id": 1}, "images": "images", "pixels": "[0,1]", "grid": views}
    return GenericOptions(**{**rest, **fields})


#: As image processors write them; not read from the table that is under test.
STATISTICS: dict[str, tuple[Any, Any]] = {
    "[0,1]": ([0.0] * 3, [1.0] * 3),
    "[-1,1]": ([0.5] * 3, [0.5] * 3),
    "0-255": ([0.0] * 3, [1 / 255] * 3),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}


def normalized(pictures: torch.Tensor, pixels: str | MeanStd) -> torch.Tensor:
    statistics = STATISTICS[pixels] if isinstance(pixels, str) else (pixels.mean, pixels.std)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in statistics)
    return (pictures - mean) / std


LAYOUTS = {
    "b v c h w": lambda p: p,
    "b v h w c": lambda p: p.permute(0, 1, 3, 4, 2),
    "b (v c) h w": lambda p: p.flatten(1, 2),
    "(b v) c h w": lambda p: p.flatten(0, 1),
    "(v b) c h w": lambda p: p.transpose(0, 1).flatten(0, 1),
}


@settings(max_examples=30)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 3), st.integers(1, 3), st.sampled_from(sorted(NORMALIZATIONS)))
def test_fault_26_every_layout_and_normalization_is_undone(layout: Any, b: int, v: int, pixels: str) -> None:
    pictures = torch.rand(b, v, 3, 4, 6)
    batch = LAYOUTS[layout](normalized(pictures, pixels))
    views = to_views(batch, options(layout=layout, grid=(v, 2, 2), pixels=pixels))
    torch.testing.assert_close(undo(views, pixels), pictures, atol=1e-5, rtol=0)


def test_single_views_need_no_layout() -> None:
    pictures = torch.rand(2, 3, 4, 6)
    assert torch.equal(to_views(pictures, options(grid=(1, 2, 2)))[:, 0], pictures)
    assert torch.equal(to_views(pictures.permute(0, 2, 3, 1), options(grid=(1, 2, 2)))[:, 0], pictures)


def test_the_half_of_each_view_that_is_meant_is_taken() -> None:
    pictures = torch.rand(2, 2, 6, 4, 6)
    given_ = options(layout="b (v c) h w", channels=(3, 4, 5))
    assert torch.equal(to_views(pictures.flatten(1, 2), given_), pictures[:, :, 3:])


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((4, 3, 8, 8), {}, r"axes of images \(4, 3, 8, 8\) float32 for 2 views are not clear"),
        ((2, 12, 8, 8), {"layout": "b (v c) h w"}, "6 channels in a view"),
        ((2, 7, 8, 8), {"layout": "b (v c) h w"}, "do not have layout"),
        ((2, 3, 3, 8, 8), {"layout": "b v c h w"}, "holds 3 images for each sample"),
        ((2, 8, 8), {"layout": "b c h w"}, "do not have layout"),
        ((48, 96), {"layout": "patches"}, "do not make up 2 views"),
    ],
)
def test_an_unknown_layout_is_an_error(shape: tuple[int, ...], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ViewsError, match=message):
        to_views(torch.rand(shape), options(**fields))


def test_what_is_no_image_is_an_error() -> None:
    with pytest.raises(ViewsError, match="a str, not a tensor"):
        to_views("image.png", options())
    uneven = [[torch.zeros(4, 4, 3), torch.zeros(4, 4, 3)], [torch.zeros(4, 4, 3)]]
    with pytest.raises(ViewsError, match=r"\[1, 2\] images"):
        to_views([[part.numpy() for part in row] for row in uneven], options())


VALID = torch.ones(2, 2, 8, 8, dtype=torch.bool)


#: Without those two of each other, which differ by less than images do among themselves.
PAIRS = [p for p in itertools.product(sorted(NORMALIZATIONS), repeat=2) if set(p) != {"clip", "imagenet"}]


@pytest.mark.parametrize(("pixels", "really"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_26_a_wrong_normalization_is_an_error(pixels: Any, really: str, dtype: torch.dtype) -> None:
    pictures = torch.rand(2, 2, 3, 8, 8)
    pictures[0, 0, :, 0, 0], pictures[0, 0, :, 0, 1] = 0.0, 1.0
    batch = normalized(pictures, really).to(dtype)
    if pixels == really:
        check_pixels(batch, VALID, pixels)
    else:
        with pytest.raises(ViewsError, match=f"pixels='{really}'".replace("[", r"\[")):
            check_pixels(batch, VALID, pixels)


def test_fault_26_dim_images_are_no_wrong_declaration() -> None:
    dim = torch.rand(2, 2, 3, 8, 8) * 0.3
    for pixels in NORMALIZATIONS:
        check_pixels(normalized(dim, pixels), VALID, pixels)
    with pytest.raises(ViewsError, match=r"nothing in them is darker than 0\.5"):
        check_pixels(dim, VALID, "[-1,1]")


def test_fault_26_what_is_not_declared_is_not_guessed() -> None:
    with pytest.raises(ViewsError, match=r"not declared.*\n.*looks like pixels='0-255'"):
        check_pixels(torch.randint(0, 256, (2, 2, 3, 8, 8), dtype=torch.uint8), VALID, None)
    with pytest.raises(ViewsError, match="No normalization that sfkit knows fits"):
        check_pixels(torch.randn(2, 2, 3, 8, 8) * 400, VALID, "[0,1]")
    with pytest.raises(ViewsError, match="NaN"):
        check_pixels(torch.full((2, 2, 3, 8, 8), torch.nan), VALID, "[0,1]")


def test_padding_is_not_looked_at() -> None:
    batch = torch.rand(2, 2, 3, 8, 8)
    batch[:, :, :, :2] = -9.0
    valid = VALID.clone()
    valid[:, :, :2] = False
    check_pixels(batch, valid, "[0,1]")
    check_pixels(batch, torch.zeros_like(VALID), "[-1,1]")


def test_other_statistics_may_be_given() -> None:
    own = MeanStd((0.2, 0.3, 0.4), (0.1, 0.2, 0.3))
    pictures = torch.rand(2, 2, 3, 8, 8)
    check_pixels(normalized(pictures, own), VALID, own)
    torch.testing.assert_close(undo(normalized(pictures, own), own), pictures, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="positive"):
        MeanStd((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))
