from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sfkit_tools import DepthProbe, DepthSamples, ProbeError, token_depth

from sfkit.errors import ShapeError
from sfkit.views.types import FeatureMap, Views

GRID = (2, 2)


def views(b: int = 4, v: int = 2, size: int = 8, seed: int = 0) -> Views:
    g = torch.Generator().manual_seed(seed)
    depth = 0.5 + torch.rand(b, v, size, size, generator=g)
    valid = torch.ones(b, v, size, size, dtype=torch.bool)
    return Views(torch.rand(b, v, 3, size, size, generator=g), valid, tuple(f"cam{i}" for i in range(v)), depth=depth)


def samples(n: int, informative: float, seed: int = 0) -> DepthSamples:
    """Frames whose depth is a strong constant of the position plus a frame's own part, which tokens tell or not."""
    g = torch.Generator().manual_seed(seed)
    position = 3.0 * torch.rand(2, *GRID, generator=torch.Generator().manual_seed(5))
    own = 0.1 * torch.randn(n, 2, *GRID, generator=g)
    tokens = torch.randn(n, 2, *GRID, 6, generator=g)
    tokens[..., 0] = informative * own * 10 + (1 - informative) * tokens[..., 0]
    tokens = tokens + 10 * torch.rand(2, *GRID, 6, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(n, 2, *GRID, dtype=torch.bool)
    return DepthSamples(tokens, position + own, mask, torch.arange(n) // 8, ("fixed", "wrist"))


def test_token_depth_is_the_mean_of_the_valid_pixels() -> None:
    seen = views()
    assert seen.depth is not None
    depth = seen.depth.clone()
    depth[0, 0, 0, 0], depth[0, 0, 0, 1], depth[0, 0, 1, 0] = 0.0, torch.nan, 50.0
    got, mask = token_depth(replace(seen, depth=depth), GRID)
    block = depth[0, 0, :4, :4]
    assert got[0, 0, 0, 0] == pytest.approx(float(block[(block > 0.05) & (block < 10)].mean()))
    assert bool(mask.all())
    assert got[1, 1, 1, 1] == pytest.approx(float(depth[1, 1, 4:, 4:].mean()))


def test_patches_with_little_depth_or_off_the_image_are_masked() -> None:
    seen = views()
    assert seen.depth is not None
    depth, valid = seen.depth.clone(), seen.valid.clone()
    depth[0, 0, :4, :4] = 0.0
    depth[0, 0, 0, 0] = 1.0
    valid[0, 1] = False
    got, mask = token_depth(replace(seen, depth=depth, valid=valid), GRID)
    assert not mask[0, 0, 0, 0]
    assert not mask[0, 1].any()
    assert got[0, 1].eq(0).all()
    assert mask[1:].all()


def test_no_depth_and_misfit_grids_are_errors() -> None:
    with pytest.raises(ProbeError, match="no depth"):
        token_depth(replace(views(), depth=None), GRID)
    with pytest.raises(ShapeError, match="does not divide"):
        token_depth(views(), (3, 3))


def test_position_alone_earns_nothing() -> None:
    train, test = samples(160, informative=0.0), samples(80, informative=0.0, seed=1)
    overall, by_view = DepthProbe.fit(train).score(test)
    assert overall.r2 == pytest.approx(0, abs=0.05)
    assert overall.mean_rmse_cm == pytest.approx(10.0, rel=0.1)
    assert set(by_view) == {"fixed", "wrist"}


def test_information_beyond_the_position_is_found() -> None:
    train, test = samples(160, informative=1.0), samples(80, informative=1.0, seed=1)
    overall, by_view = DepthProbe.fit(train).score(test)
    assert overall.r2 > 0.95
    assert overall.rmse_cm < 2.5
    assert overall.samples == sum(score.samples for score in by_view.values()) == 80 * 8


def test_masked_tokens_take_no_part_even_when_nan() -> None:
    train, test = samples(160, informative=1.0), samples(80, informative=1.0, seed=1)
    want = DepthProbe.fit(train).score(test)[0]
    mask = train.mask.clone()
    mask[::5, 0, 0, 0] = False
    tokens, depth = train.tokens.clone(), train.depth.clone()
    tokens[::5, 0, 0, 0], depth[::5, 0, 0, 0] = torch.nan, torch.nan
    got = DepthProbe.fit(replace(train, tokens=tokens, depth=depth, mask=mask)).score(test)[0]
    assert got.r2 == pytest.approx(want.r2, abs=0.02)


def test_a_view_that_is_never_valid_is_left_out() -> None:
    train, test = samples(40, informative=1.0), samples(40, informative=1.0, seed=1)
    mask = train.mask.clone()
    mask[:, 1] = False
    probe = DepthProbe.fit(replace(train, mask=mask))
    assert set(probe.score(test)[1]) == {"fixed"}
    with pytest.raises(ProbeError, match="No token of these frames"):
        probe.score(replace(test, mask=torch.zeros_like(test.mask)))
    with pytest.raises(ProbeError, match="No token has a valid depth"):
        DepthProbe.fit(replace(train, mask=torch.zeros_like(mask)))


def test_samples_are_made_from_captured_features_and_joined() -> None:
    seen = views()
    features = FeatureMap(torch.randn(4, 2, *GRID, 6), torch.ones(4, 2, *GRID, dtype=torch.bool))
    features.mask[0, 0, 0, 0] = False
    part = DepthSamples.of(features, seen, torch.tensor([0, 0, 1, 1]))
    assert not part.mask[0, 0, 0, 0]
    joined = DepthSamples.cat([part, part])
    assert joined.tokens.shape == (8, 2, *GRID, 6)
    assert joined.groups.tolist() == [0, 0, 1, 1] * 2
    assert joined.names == ("cam0", "cam1")
