"""What can be seen of openpi's augmentation in the images themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openpi.models_pytorch.preprocessing_pytorch import preprocess_observation_pytorch
from sfkit_openpi.pixels import has_bars, inside_bars, moved
from tiny_openpi import tiny_observation

SIDE = 56


def augmented(seed, source=None):
    """Images of one batch before and after; the last two cameras are wrists."""
    observation, _ = tiny_observation(2, size=SIDE, source=source, seed=seed)
    torch.manual_seed(seed)
    seen = preprocess_observation_pytorch(observation, train=True, image_resolution=(SIDE, SIDE))
    return [(observation.images[name], seen.images[name] * 0.5 + 0.5) for name in observation.images]


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_only_the_camera_that_was_cropped_has_moved(seed) -> None:
    base, *wrists = augmented(seed)
    assert moved(*base)
    assert [moved(*wrist) for wrist in wrists] == [False, False]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(28, 56), (42, 56), (56, 35)]))
def test_bars_are_found_whatever_their_color_and_place(seed, source) -> None:
    base, *wrists = augmented(seed, source)
    share = source[0] * source[1] / SIDE**2
    for image, seen in wrists:
        black = (image == -1).all(1)
        assert torch.equal(inside_bars(seen), ~black)
    found = inside_bars(base[1]).float().mean((1, 2))
    assert bool(((found - share).abs() < 0.12).all())


def test_which_images_have_bars() -> None:
    image = torch.zeros(4, 3, 8, 8)
    image[1, :, 0] = -1
    image[2, :, :, -1] = -1
    image[3, :, 3:5, 3:5] = -1
    assert has_bars(image).tolist() == [False, True, True, False]
    image[1, 0, 0, 0] = -0.97  # compressed
    assert has_bars(image).tolist() == [False, False, True, False]
    assert has_bars(image, 0.02).tolist() == [False, True, True, False]


def test_compressed_bars_are_found_with_a_tolerance() -> None:
    (image, seen), *_ = augmented(3, (28, 56))[1:]
    noisy = (seen + 0.01 * torch.rand(seen.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert float((inside_bars(noisy) == (image == -1).all(1)).float().mean()) > 0.4
    assert torch.equal(inside_bars(noisy, 0.02), ~(image == -1).all(1))


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_an_image_of_one_color_gives_no_verdict(value) -> None:
    image = torch.full((2, 3, SIDE, SIDE), value)
    assert moved(image, image * 0.5 + 0.5) is None


def test_another_size_has_moved() -> None:
    assert moved(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 8))


def test_a_shift_by_one_pixel_is_noticed() -> None:
    image, _ = augmented(0)[1]
    assert moved(image.roll(1, -1), image * 0.5 + 0.5)
    assert not moved(image, image * 0.35 + 0.5)
