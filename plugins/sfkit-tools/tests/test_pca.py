from __future__ import annotations

import pytest
import torch
from sfkit_tools import ProbeError, pca_colors

from sfkit.views.types import FeatureMap


def features(b: int = 6, d: int = 8, seed: int = 0) -> FeatureMap:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(b, 2, 4, 4, d, generator=g) * torch.logspace(1, -1, d)
    return FeatureMap(values, torch.ones(b, 2, 4, 4, dtype=torch.bool))


def test_colors_are_deterministic_and_in_range() -> None:
    colors = pca_colors(features())
    assert colors.shape == (6, 2, 4, 4, 3)
    assert float(colors.min()) == 0
    assert float(colors.max()) == 1
    assert torch.equal(colors, pca_colors(features()))


def test_signs_are_fixed_by_the_largest_loading() -> None:
    plain = features()
    turned = FeatureMap(plain.values.flip(0), plain.mask)
    assert torch.allclose(pca_colors(turned).flip(0), pca_colors(plain), atol=1e-5)


def test_the_first_color_follows_the_main_direction() -> None:
    seen = features()
    colors = pca_colors(seen, clip=0.0)
    red, main = colors[..., 0].flatten(), seen.values[..., 0].flatten()
    assert abs(float(torch.corrcoef(torch.stack([red, main]))[0, 1])) > 0.95


def test_masked_tokens_are_nan_and_change_nothing() -> None:
    seen = features()
    mask = seen.mask.clone()
    mask[0] = False
    values = seen.values.clone()
    values[0] = torch.nan
    colors = pca_colors(FeatureMap(values, mask))
    assert bool(colors[0].isnan().all())
    assert torch.allclose(colors[1:], pca_colors(FeatureMap(seen.values[1:], mask[1:])))


def test_centered_positions_hide_what_never_changes() -> None:
    seen = features()
    fixed = 100 * torch.rand(2, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    moved = FeatureMap(seen.values + fixed, seen.mask)
    want, got = pca_colors(seen, center_positions=True), pca_colors(moved, center_positions=True)
    assert torch.allclose(want, got, atol=1e-4)


def test_one_outlier_does_not_fade_the_others() -> None:
    seen = features()
    values = seen.values.clone()
    values[0, 0, 0, 0, 0] = 1e4
    assert float(pca_colors(FeatureMap(values, seen.mask))[..., 0].std()) > 0.1


@pytest.mark.parametrize("d", [1, 2])
def test_fewer_channels_than_colors(d: int) -> None:
    colors = pca_colors(features(d=d))
    assert colors.shape[-1] == 3
    assert bool((colors[..., d:] == 0.5).all())


def test_too_few_tokens_and_nan_are_errors() -> None:
    seen = features()
    with pytest.raises(ProbeError, match="at least two"):
        pca_colors(FeatureMap(seen.values, torch.zeros_like(seen.mask)))
    with pytest.raises(ProbeError, match="NaN"):
        pca_colors(FeatureMap(seen.values * torch.nan, seen.mask))


def test_equal_tokens_have_no_color() -> None:
    seen = features()
    assert bool((pca_colors(FeatureMap(torch.ones_like(seen.values), seen.mask)) == 0.5).all())


def test_a_large_mean_changes_no_color() -> None:
    seen = FeatureMap(features().values.double(), features().mask)
    moved = FeatureMap(seen.values + 1e8, seen.mask)
    torch.testing.assert_close(pca_colors(moved), pca_colors(seen), rtol=0, atol=1e-4)
