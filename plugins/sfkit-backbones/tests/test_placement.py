"""From views to canvases and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from sfkit_backbones.placement import Placement, paint, place, read_back

sides = st.integers(8, 200)


@given(sides, sides, st.integers(1, 12), st.sampled_from([14, 16]), st.sampled_from(["keep", "pad", "crop", "stretch"]))
def test_canvases_divide_into_patches(h: int, w: int, patches: int, patch: int, fit: str) -> None:
    side = patches * patch
    placement = place((h, w), side, patch, fit)  # type: ignore[arg-type]
    assert not any(length % patch or not 0 < length <= side for length in placement.canvas)
    assert side in placement.canvas
    image = paint(torch.rand(1, 1, 3, h, w), placement, fill=1.0)
    assert image.shape == (1, 1, 3, *placement.canvas)
    assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize(
    ("view", "fit", "wanted"),
    [
        ((224, 224), "keep", Placement((518, 518), (518, 518))),
        ((480, 640), "keep", Placement((392, 518), (392, 518))),
        ((640, 480), "keep", Placement((518, 392), (518, 392))),
        ((480, 640), "crop", Placement((392, 518), (392, 518))),
        ((640, 480), "crop", Placement((518, 518), (686, 518), top=-84)),
        ((480, 640), "pad", Placement((518, 518), (392, 518), top=63)),
        ((480, 640), "stretch", Placement((518, 518), (518, 518))),
    ],
)
def test_the_official_sizes(view: tuple[int, int], fit: str, wanted: Placement) -> None:
    assert place(view, 518, 14, fit) == wanted  # type: ignore[arg-type]


def test_padding_surrounds_and_cropping_takes_the_middle() -> None:
    image = torch.linspace(0, 0.9, 42 * 56).reshape(1, 1, 1, 42, 56).expand(1, 1, 3, 42, 56)
    padded = paint(image, place((42, 56), 56, 14, "pad"), fill=1.0)
    assert torch.equal(padded[..., 7:49, :], image)
    assert bool((padded[..., :7, :] == 1).all())
    assert bool((padded[..., 49:, :] == 1).all())
    tall = image.transpose(-1, -2)
    cropped = paint(tall, place((56, 42), 42, 14, "crop"), fill=1.0)
    assert torch.equal(cropped, tall[..., 7:49, :])


def test_resizing_is_pillows() -> None:
    pillow = pytest.importorskip("PIL.Image")
    for size, new in (((40, 40), (56, 56)), ((60, 48), (28, 28))):
        # Far from black and white: Pillow cuts overshoot off after each of its two passes, in whole numbers.
        pixels = torch.randint(90, 166, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        image = pillow.frombytes("RGB", size[::-1], bytes(pixels.flatten().tolist()))
        wanted = torch.tensor(list(image.resize(new[::-1], pillow.BICUBIC).tobytes())).reshape(*new, 3)
        ours = paint(pixels.permute(2, 0, 1)[None] / 255, Placement(new, new), fill=1.0)[0].permute(1, 2, 0)
        assert (ours * 255 - wanted).abs().max() <= 1.6


def test_without_antialiasing_it_is_torchs_plain_bicubic() -> None:
    image = torch.rand(1, 3, 30, 30)
    plain = F.interpolate(image, (14, 14), mode="bicubic", align_corners=False).clamp(0, 1)
    assert torch.equal(paint(image, Placement((14, 14), (14, 14)), fill=0.0, antialias=False), plain)


def position_map(placement: Placement, patch: int) -> torch.Tensor:
    """Features that say where on the canvas, in pixels, the center of each patch is."""
    rows, columns = (torch.arange(side // patch) * float(patch) + patch / 2 for side in placement.canvas)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None, None]


@given(st.integers(40, 200), st.integers(40, 200), st.sampled_from(["keep", "pad", "crop", "stretch"]))
def test_features_come_back_to_where_they_were_seen(h: int, w: int, fit: str) -> None:
    placement = place((h, w), 140, 14, fit)  # type: ignore[arg-type]
    found = read_back(position_map(placement, 14), placement)
    rows, columns = found.grid
    down = (torch.arange(rows) + 0.5) * placement.scaled[0] / rows + placement.top
    across = (torch.arange(columns) + 0.5) * placement.scaled[1] / columns + placement.left
    wanted = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1)[None, None]
    on_canvas = (wanted[..., 0] >= 0) & (wanted[..., 0] < placement.canvas[0])
    assert torch.equal(found.mask, on_canvas)
    inside = found.mask & (wanted >= 7).all(-1) & (wanted[..., 0] <= placement.canvas[0] - 7)
    assert torch.allclose(found.values[inside], wanted[inside].float(), atol=1e-3)


def test_a_map_that_fills_the_view_is_handed_on_as_it_is() -> None:
    features = torch.rand(2, 3, 4, 5, 6)
    placement = place((56, 70), 70, 14, "keep")
    found = read_back(features, placement)
    assert found.values is features
    assert bool(found.mask.all())
