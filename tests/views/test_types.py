from __future__ import annotations

import pytest
import torch

from sfkit.errors import ShapeError
from sfkit.views.types import FeatureMap, Views


def views(b: int = 2, v: int = 3, h: int = 8, w: int = 12) -> Views:
    return Views(
        torch.arange(b * v * 3 * h * w).reshape(b, v, 3, h, w).float(),
        torch.ones(b, v, h, w, dtype=torch.bool),
        tuple(f"cam{i}" for i in range(v)),
        depth=torch.rand(b, v, h, w),
        keys=tuple(("data", i, i) for i in range(b)),
    )


def test_every_misshapen_field_is_named() -> None:
    good = views()
    for field, bad in {
        "images": torch.zeros(2, 3, 8, 12, 3),
        "valid": torch.ones(2, 3, 8, 8, dtype=torch.bool),
        "depth": torch.zeros(2, 3, 12, 8),
        "intrinsics": torch.zeros(2, 3, 3),
        "world_from_camera": torch.zeros(2, 3, 3, 4),
    }.items():
        with pytest.raises(ShapeError, match=field):
            Views(**{**good.__dict__, field: bad})
    with pytest.raises(ShapeError, match="bool"):
        Views(good.images, good.valid.float(), good.names)
    with pytest.raises(ShapeError, match="names"):
        Views(good.images, good.valid, ("only one",))
    with pytest.raises(ShapeError, match="keys"):
        Views(good.images, good.valid, good.names, keys=(("d", 0, 0),))


def test_select_keeps_every_field_in_step() -> None:
    part = views().select(torch.tensor([1]), [2, 0])
    assert part.names == ("cam2", "cam0")
    assert part.keys == (("data", 1, 1),)
    assert torch.equal(part.images, views().images[1:, [2, 0]])
    assert part.depth is not None
    assert part.depth.shape == (1, 2, 8, 12)
    assert part.intrinsics is None


def test_a_token_is_valid_when_all_of_its_pixels_are() -> None:
    seen = views(1, 1, 8, 12)
    seen.valid[0, 0, 3, 5] = False
    mask = seen.token_mask((2, 3))
    expected = torch.ones(2, 3, dtype=torch.bool)
    expected[0, 1] = False
    assert torch.equal(mask[0, 0], expected)
    with pytest.raises(ShapeError, match="does not divide"):
        seen.token_mask((3, 3))


def test_presence_is_any_valid_pixel() -> None:
    seen = views(2, 2)
    seen.valid[1, 0] = False
    assert seen.present.tolist() == [[True, True], [False, True]]


def test_feature_maps_check_their_shapes_and_drop_masked_nan() -> None:
    values = torch.full((1, 1, 2, 2, 3), torch.nan)
    values[..., 0, 0, :] = 1.0
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[..., 0, 0] = True
    clean = FeatureMap(values, mask).sanitized()
    assert clean.values.isfinite().all()
    assert clean.values.sum() == 3
    assert (clean.grid, clean.dim) == ((2, 2), 3)
    with pytest.raises(ShapeError, match=r"b, v, gh, gw, d"):
        FeatureMap(values[0], mask)
    with pytest.raises(ShapeError, match="mask"):
        FeatureMap(values, mask[..., :1])
    with pytest.raises(ShapeError, match="bool"):
        FeatureMap(values, mask.float())
