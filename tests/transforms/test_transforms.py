"""What all target transforms promise, and what each of them does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfkit.errors import CheckpointError, ConfigError, ShapeError
from sfkit.factory.components import build_transforms
from sfkit.objectives.distances import CosineObjective
from sfkit.registry.registry import default_registry
from sfkit.training.pair import AlignmentPair
from sfkit.transforms.base import Transform
from sfkit.transforms.projection import PCATransform
from sfkit.transforms.standard import PositionCode, ResampleTransform, position_code
from sfkit.views.types import FeatureMap

DIM = 8
ALL: dict[str, Any] = {
    "position-code": "position-code",
    "position-code absolute": ("position-code", {"scale": "absolute"}),
    "spatial-norm": "spatial-norm",
    "layer-norm": "layer-norm",
    "random-projection": ("random-projection", {"dim": 3}),
    "pca": ("pca", {"dim": 3}),
    "resample": "resample",
    "resample corners": ("resample", {"align_corners": True}),
}
every = pytest.mark.parametrize("name", ALL)
few = settings(max_examples=10)


def case(seed: int = 0, grid: tuple[int, int] = (3, 4)) -> FeatureMap:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 2, *grid, generator=g) > 0.3
    mask[0, 0, 0, :3] = True
    mask[1, 1] = False
    return FeatureMap(torch.randn(2, 2, *grid, DIM, generator=g), mask)


def build(*names: Any) -> list[Transform]:
    return build_transforms([ALL.get(name, name) if isinstance(name, str) else name for name in names], DIM)


def prepare(features: FeatureMap, wanted: Tensor, *names: Any) -> FeatureMap:
    return AlignmentPair(None, CosineObjective(), transforms=build(*names)).target(features, wanted)


@every
@few
@given(seed=st.integers(0, 1000))
def test_fault_21_masked_features_reach_no_target(name: str, seed: int) -> None:
    features = case(seed)
    wanted = torch.ones(2, 2, 3, 4, dtype=torch.bool)
    wanted[0, 0, 2] = False
    clean = prepare(features, wanted, name)
    values = features.values.clone()
    values[~features.mask] = torch.nan
    found = prepare(FeatureMap(values, features.mask), wanted, name)
    assert torch.equal(found.values, clean.values)
    assert torch.equal(found.mask, features.mask & wanted)
    assert found.values.dtype == torch.float32
    assert (found.values[~found.mask] == 0).all()
    assert found.values.isfinite().all()


@every
@few
@given(seed=st.integers(0, 1000))
def test_tokens_that_the_student_lacks_do_not_matter(name: str, seed: int) -> None:
    features, wanted = case(seed), torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) > 0.2
    wanted[0, 0, 0] = True
    other = torch.where(wanted.unsqueeze(-1), features.values, 7.0)
    found = prepare(FeatureMap(other, features.mask), wanted, name)
    assert torch.equal(found.values, prepare(features, wanted, name).values)


@every
def test_fault_22_no_valid_feature_gives_zeros(name: str) -> None:
    features = case()
    for grid in ((3, 4), (2, 2)):
        wanted = torch.ones(2, 2, *grid, dtype=torch.bool)
        transforms = build("resample", name)
        nothing = FeatureMap(features.values * torch.nan, torch.zeros_like(features.mask))
        for transform in transforms:
            nothing = transform(nothing, wanted)
        assert not nothing.mask.any()
        assert (nothing.values == 0).all()


def test_every_registered_transform_is_tried() -> None:
    assert {name.split()[0] for name in ALL} == {entry.name for entry in default_registry().of_kind("transform")}


@every
@few
@given(seed=st.integers(0, 1000), power=st.integers(-30, 30))
def test_bfloat16_features_of_any_size_give_finite_targets(name: str, seed: int, power: int) -> None:
    features, wanted = case(seed), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    found = prepare(FeatureMap((features.values * 2.0**power).bfloat16(), features.mask), wanted, name)
    assert found.values.isfinite().all()
    assert found.values[found.mask].abs().max() > 0


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"pca"}))
@few
@given(seed=st.integers(0, 1000))
def test_each_sample_has_a_target_of_its_own(name: str, seed: int) -> None:
    features, wanted = case(seed), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    alone = FeatureMap(features.values[:1], features.mask[:1])
    whole = prepare(features, wanted, name).values[:1]
    assert torch.allclose(prepare(alone, wanted[:1], name).values, whole, atol=1e-5)


@every
def test_half_precision_features_are_computed_in_float32(name: str) -> None:
    features, wanted = case(), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    half = FeatureMap(features.values.bfloat16(), features.mask)
    exact = prepare(FeatureMap(half.values.float(), half.mask), wanted, name)
    assert torch.equal(prepare(half, wanted, name).values, exact.values)


# ---------------------------------------------------------------------------------------------- the sequence


def test_resampling_comes_first_unless_the_sequence_says_where() -> None:
    assert [t.name for t in build("layer-norm", "pca")] == ["resample", "layer-norm", "pca"]
    assert [t.name for t in build("layer-norm", "resample")] == ["layer-norm", "resample"]
    assert build() == []


def test_widths_follow_the_sequence() -> None:
    transforms = build(("random-projection", {"dim": 4}), "position-code", ("pca", {"dim": 2}))
    assert [(t.dim, t.out_dim) for t in transforms] == [(8, 8), (8, 4), (4, 4), (4, 2)]
    with pytest.raises(ConfigError, match="takes 8 channels, there are 4"):
        build(("random-projection", {"dim": 4}), PositionCode(8))
    with pytest.raises(ConfigError, match="multiple of 4 channels, not 3"):
        build(("random-projection", {"dim": 3}), "position-code")
    for name in ("pca", "random-projection"):
        with pytest.raises(ConfigError, match="dim=9, the features have 8"):
            build((name, {"dim": 9}))
    with pytest.raises(ConfigError, match="not a list"):
        build_transforms("pca", DIM)


def test_a_target_on_another_grid_is_an_error() -> None:
    pair = AlignmentPair(None, CosineObjective(), transforms=[PositionCode(DIM)])
    with pytest.raises(ShapeError, match="target has a grid"):
        pair.target(case(), torch.ones(2, 2, 2, 2, dtype=torch.bool))


# ---------------------------------------------------------------------------------------------- position code


def test_the_position_code_by_hand() -> None:
    # One row of two columns: a = 2, x = -/+ (2 / sqrt 5) / 2, y = 0; dim 8: frequencies 1 and 1 / 10.
    x = 1 / math.sqrt(5)
    left = [math.sin(-x), math.sin(-x / 10), math.cos(x), math.cos(x / 10), 0, 0, 1, 1]
    right = [math.sin(x), math.sin(x / 10), math.cos(x), math.cos(x / 10), 0, 0, 1, 1]
    assert torch.allclose(position_code(1, 2, 8), torch.tensor([[left, right]], dtype=torch.float32))


@few
@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_the_code_has_one_norm_everywhere_and_tells_places_apart(rows: int, columns: int) -> None:
    code = position_code(rows, columns, 32)
    assert torch.allclose(code.norm(dim=-1), torch.full((rows, columns), 4.0), atol=1e-5)
    flat = code.flatten(0, 1)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 1e-3


def test_rows_and_columns_are_not_exchanged() -> None:
    code = position_code(3, 5, 16)
    assert torch.equal(code[0, :, 8:], code[0, :1, 8:].expand(5, -1))  # along a row, only x changes
    assert torch.equal(code[:, 0, :8], code[:1, 0, :8].expand(3, -1))


def test_the_released_figures() -> None:
    code = 0.1 * position_code(37, 37, 2048)
    assert torch.allclose(code.norm(dim=-1), torch.tensor(3.2))
    flat = torch.nn.functional.normalize(code[::6, ::6].flatten(0, 1), dim=-1)
    assert (flat @ flat.t()).min() == pytest.approx(0.904, abs=2e-3)


@few
@given(power=st.integers(-6, 8), seed=st.integers(0, 1000))
def test_fault_33_a_relative_code_follows_the_teachers_norm(power: int, seed: int) -> None:
    features, wanted = case(seed), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    target = prepare(features, wanted, "position-code")
    scaled = prepare(FeatureMap(features.values * 2.0**power, features.mask), wanted, "position-code")
    assert torch.allclose(scaled.values, target.values * 2.0**power, rtol=1e-4, atol=1e-6)
    student = torch.randn(2, 2, 3, 4, DIM, generator=torch.Generator().manual_seed(seed))
    losses = [CosineObjective()(student, t.values, t.mask) for t in (target, scaled)]
    assert torch.allclose(*losses, atol=1e-5)


def test_fault_33_the_ratio_is_that_of_norms() -> None:
    features, wanted = case(), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    added = prepare(features, wanted, ("position-code", {"ratio": 0.3})).values - features.sanitized().values
    norms = features.values.norm(dim=-1)[0][features.mask[0]]
    assert torch.allclose(added[0][features.mask[0]].norm(dim=-1), 0.3 * norms.mean(), atol=1e-5)


def test_an_absolute_code_has_the_configured_amplitude() -> None:
    features, wanted = case(), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    found = prepare(features, wanted, ("position-code", {"scale": "absolute", "ratio": 0.2})).values
    plain = features.values + 0.2 * position_code(3, 4, DIM)
    assert torch.allclose(found[features.mask], plain[features.mask])


# ---------------------------------------------------------------------------------------------- normalizations


def test_spatial_norm_by_hand() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [100.0, -7.0]]).reshape(1, 1, 1, 3, 2)
    mask = torch.tensor([True, True, False]).reshape(1, 1, 1, 3)
    found = build_transforms([("spatial-norm", {"gamma": 0.5, "eps": 1e-3})], 2)[1](FeatureMap(values, mask), mask)
    deviation = math.sqrt(2) + 1e-3  # of 1 and 3, unbiased; the second channel has none
    wanted = torch.tensor([[0 / deviation, 2.5 / 1e-3], [2 / deviation, 2.5 / 1e-3], [0, 0]])
    assert torch.allclose(found.values[0, 0, 0], wanted)


@few
@given(seed=st.integers(0, 1000))
def test_spatial_norm_removes_scale_and_offset_of_a_view(seed: int) -> None:
    features, wanted = case(seed), torch.ones(2, 2, 3, 4, dtype=torch.bool)
    transform = ("spatial-norm", {"gamma": 1.0})
    offset = torch.randn(2, 2, 1, 1, DIM, generator=torch.Generator().manual_seed(seed))
    moved = prepare(FeatureMap(3 * features.values + offset, features.mask), wanted, transform).values
    assert torch.allclose(moved, prepare(features, wanted, transform).values, rtol=1e-3, atol=1e-3)


def test_layer_norm_by_hand() -> None:
    values = torch.tensor([1.0, 3.0, 3.0, 1.0]).reshape(1, 1, 1, 1, 4)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    found = build_transforms([("layer-norm", {"eps": 1e-9})], 4)[1](FeatureMap(values, mask), mask)
    assert torch.allclose(found.values.flatten(), torch.tensor([-1.0, 1.0, 1.0, -1.0]))


# ---------------------------------------------------------------------------------------------- fewer channels


def test_a_random_projection_follows_its_seed_and_keeps_lengths() -> None:
    before = torch.get_rng_state()
    one, two, other = (build_transforms([("random-projection", {"dim": 64, "seed": s})], 256)[1] for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.matrix, two.matrix)  # type: ignore[arg-type]
    assert not torch.equal(one.matrix, other.matrix)  # type: ignore[arg-type]
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(7))  # not the matrix's own numbers
    shortened = (x @ one.matrix.t()).norm(dim=-1) / x.norm(dim=-1)  # type: ignore[operator]
    assert ((shortened > 0.6) & (shortened < 1.4)).all()


def test_pca_finds_the_plane_in_which_the_features_lie() -> None:
    g = torch.Generator().manual_seed(0)
    plane, _ = torch.linalg.qr(torch.randn(DIM, 2, generator=g))
    inside = torch.randn(1, 1, 5, 5, 2, generator=g) * torch.tensor([3.0, 1.0])
    features = FeatureMap(inside @ plane.t() + 4.0, torch.ones(1, 1, 5, 5, dtype=torch.bool))
    pca = PCATransform(DIM, {"dim": 2})
    target = pca(features, features.mask)
    assert torch.allclose(target.values @ pca.components + pca.mean, features.values, atol=1e-4)
    assert target.values.var((0, 1, 2, 3))[0] > target.values.var((0, 1, 2, 3))[1]
    assert torch.allclose(pca.components @ pca.components.t(), torch.eye(2), atol=1e-5)
    assert (pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_is_fitted_once_and_waits_for_a_valid_token() -> None:
    pca, features = PCATransform(DIM, {"dim": 2}), case()
    pca(FeatureMap(features.values, torch.zeros_like(features.mask)), features.mask)
    assert not pca.fitted
    pca(features, features.mask)
    kept = pca.components.clone()
    pca(case(7), features.mask)
    assert torch.equal(pca.components, kept)


def test_pca_goes_through_a_file_and_through_a_state_dict(tmp_path: Path) -> None:
    pca, features = PCATransform(DIM, {"dim": 2}), case()
    pca.fit(features, case(3))
    pca.save(tmp_path / "pca.safetensors")
    read = PCATransform(DIM, {"dim": 2, "file": str(tmp_path / "pca.safetensors")})
    loaded = PCATransform(DIM, {"dim": 2, "file": str(tmp_path / "gone.safetensors")})
    loaded.load_state_dict(pca.state_dict())  # a resumed run needs no file
    wanted = pca(features, features.mask).values
    assert torch.equal(read(features, features.mask).values, wanted)
    assert torch.equal(loaded(features, features.mask).values, wanted)


def test_pca_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = case()
    one = torch.zeros_like(features.mask)
    one[0, 0, 0, 0] = True
    with pytest.raises(ConfigError, match="1 valid tokens to find 2 components"):
        PCATransform(DIM, {"dim": 2})(FeatureMap(features.values, one), one)
    with pytest.raises(CheckpointError, match="could not be read"):
        PCATransform(DIM, {"dim": 2, "file": str(tmp_path / "no")})(features, one)
    pca = PCATransform(DIM, {"dim": 2})
    pca.fit(features)
    pca.save(tmp_path / "two")
    with pytest.raises(CheckpointError, match="expected"):
        PCATransform(DIM, {"dim": 3, "file": str(tmp_path / "two")})(features, one)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="would differ between ranks"):
        PCATransform(DIM, {"dim": 2})(features, one)


# ---------------------------------------------------------------------------------------------- resampling


def test_aligned_corners_by_hand() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 5, 1).expand(-1, -1, 5, -1, -1)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    wanted = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    found = ResampleTransform(1, {"align_corners": True})(FeatureMap(values, mask), wanted).values[0, 0, ..., 0]
    assert torch.allclose(found, torch.tensor([0.0, 2.0, 4.0]).expand(3, 3))
    half = ResampleTransform(1)(FeatureMap(values, mask), wanted).values[0, 0, 0, :, 0]
    assert half[0] > 0.3  # centers of larger cells lie further in


def test_aligned_corners_leave_masked_features_out() -> None:
    features = case(grid=(5, 6))
    values = torch.where(features.mask.unsqueeze(-1), torch.ones(()), torch.nan).expand(-1, -1, -1, -1, DIM)
    wanted = torch.ones(2, 2, 3, 4, dtype=torch.bool)
    found = ResampleTransform(DIM, {"align_corners": True})(FeatureMap(values, features.mask), wanted)
    assert torch.allclose(found.values[found.mask], torch.ones(()))
    assert 0 < found.mask.sum() < 3 * 4 * 3


#: Grids to which int(37 * ratio) does not bring a grid of 37.
OUT_OF_REACH = {6, 12, 13, 15, 24, 26, 30, 33}


def ramp(side: int) -> FeatureMap:
    """The column of each patch's center, as a share of the image."""
    columns = (torch.arange(side) + 0.5) / side
    return FeatureMap(columns.expand(1, 1, side, side).unsqueeze(-1), torch.ones(1, 1, side, side, dtype=torch.bool))


@pytest.mark.parametrize("side", range(4, 37))
def test_fault_17_scale_factor_alone_misses_some_grids(side: int) -> None:
    wanted = torch.ones(1, 1, side, side, dtype=torch.bool)
    assert ResampleTransform(1)(ramp(37), wanted).grid == (side, side)
    released = ResampleTransform(1, {"scale_factor": True})
    if side in OUT_OF_REACH:
        with pytest.raises(ShapeError, match=rf"\(37, 37\) becomes \({side - 1}, {side - 1}\)"):
            released(ramp(37), wanted)
    else:
        assert torch.equal(released(ramp(37), wanted).values, ResampleTransform(1)(ramp(37), wanted).values)


def test_fault_17_a_grid_of_another_aspect_is_reached() -> None:
    wanted = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    oblong = FeatureMap(torch.rand(1, 1, 28, 37, 1), torch.ones(1, 1, 28, 37, dtype=torch.bool))
    assert ResampleTransform(1)(oblong, wanted).grid == (16, 16)
    with pytest.raises(ShapeError, match=r"\(28, 37\) becomes \(13, 18\)"):
        ResampleTransform(1, {"scale_factor": True})(oblong, wanted)


def test_fault_18_only_aligned_corners_shift_patches() -> None:
    wanted = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    true, inner = ramp(16).values, slice(1, -1)

    def missed(**options: bool) -> float:
        """By how much of a student patch, borders aside: there an antialiased kernel is cut off."""
        found = ResampleTransform(1, options)(ramp(37), wanted).values
        return float((found - true)[..., inner, :].abs().max() * 16)

    assert missed() < 0.02
    released = ResampleTransform(1, {"align_corners": True})(ramp(37), wanted).values
    assert float((released - true).abs().max() * 16) == pytest.approx(0.28, abs=0.005)
