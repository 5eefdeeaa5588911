"""The geometry teacher: right points, right masks, right statistics."""

from __future__ import annotations

import math

import pytest
import torch

from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.teachers.geometry import GeometryTeacher
from sfkit.views.types import FeatureMap, Views

GRID = (4, 4)


def scene(b: int = 3, v: int = 2, size: int = 32, seed: int = 0) -> Views:
    g = torch.Generator().manual_seed(seed)
    k = torch.tensor([[40.0, 0.0, (size - 1) / 2], [0.0, 40.0, (size - 1) / 2], [0.0, 0.0, 1.0]])
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    return Views(
        torch.rand(b, v, 3, size, size, generator=g),
        torch.ones(b, v, size, size, dtype=torch.bool),
        tuple(f"cam{i}" for i in range(v)),
        depth=0.5 + torch.rand(b, v, size, size, generator=g),
        intrinsics=k.expand(b, v, 3, 3),
        world_from_camera=pose.expand(b, v, 4, 4),
    )


def encode(teacher: GeometryTeacher, views: Views, grid: tuple[int, int] = GRID) -> FeatureMap:
    teacher.observe((views, grid))
    return teacher.encode(None, views, [1], grid)[0]


def raw(views: Views, **options: object) -> torch.Tensor:
    return GeometryTeacher({"bands": 0, **options})._features(views, GRID)[0]


def test_points_against_an_explicit_loop() -> None:
    views = scene(1, 1)
    assert views.depth is not None
    features = raw(views)
    fx = 40.0
    for row, column, cell in ((0, 0, 0), (1, 3, 3), (3, 2, 1)):
        r0, c0 = row * 8 + (cell // 2) * 4, column * 8 + (cell % 2) * 4
        points = []
        for r in range(r0, r0 + 4):
            for c in range(c0, c0 + 4):
                z = views.depth[0, 0, r, c].item()
                points.append([(c - 15.5) / fx * z, (r - 15.5) / fx * z, z])
        wanted = torch.tensor(points).mean(0)
        assert torch.allclose(features[0, 0, row, column].reshape(4, 3)[cell], wanted, atol=1e-5)


def test_world_points_are_camera_points_moved() -> None:
    views = scene()
    moved = raw(views, frame="world") - raw(views, frame="camera")
    wanted = torch.tensor([1.0, -2.0, 0.5]).repeat(4)
    assert torch.allclose(moved, wanted.expand_as(moved), atol=1e-5)


def test_fourier_features_have_the_documented_wavelengths() -> None:
    views = scene(1, 1)
    teacher = GeometryTeacher({"cells": 1, "bands": 2, "wavelength": 3.0})
    features = teacher._features(views, GRID)[0]
    points, waves = features[..., :3], features[..., 3:]
    for band, wavelength in enumerate((3.0, 1.5)):
        sin, cos = waves[..., 6 * band : 6 * band + 3], waves[..., 6 * band + 3 : 6 * band + 6]
        assert torch.allclose(sin, torch.sin(2 * math.pi * points / wavelength), atol=1e-5)
        assert torch.allclose(cos, torch.cos(2 * math.pi * points / wavelength), atol=1e-5)
    assert teacher.dim(1) == features.shape[-1] == 15


@pytest.mark.parametrize("bad", [0.0, torch.nan, 0.01, 113.0, -1.0, torch.inf])
def test_fault_54_invalid_depth_is_masked_and_never_a_target(bad: float) -> None:
    views = scene()
    assert views.depth is not None
    views.depth[0, 1, 8:16, 24:32] = bad
    features = encode(GeometryTeacher(), views)
    wanted = torch.ones(3, 2, *GRID, dtype=torch.bool)
    wanted[0, 1, 1, 3] = False
    assert torch.equal(features.mask, wanted)
    assert features.values.isfinite().all()


def test_a_few_invalid_pixels_are_left_out_of_the_mean() -> None:
    views = scene(1, 1)
    assert views.depth is not None
    clean = raw(views)
    views.depth[0, 0, 0, 0] = 100.0
    features, mask = GeometryTeacher({"bands": 0})._features(views, GRID)
    assert mask.all()
    assert (features - clean)[0, 0, 0, 0, :3].abs().max() < 0.1


def test_samples_and_views_without_depth_are_masked() -> None:
    views = scene()
    assert views.depth is not None
    views.depth[1] = 0
    views.valid[2, 0] = False
    mask = encode(GeometryTeacher(), views).mask
    assert not mask[1].any()
    assert not mask[2, 0].any()
    assert mask[0].all()
    assert mask[2, 1].all()


def test_an_unknown_pose_masks_the_view_in_the_world_frame() -> None:
    views = scene()
    poses = views.world_from_camera.clone()  # type: ignore[union-attr]
    poses[0, 0] = torch.nan
    views = Views(**{**views.__dict__, "world_from_camera": poses})
    assert not encode(GeometryTeacher({"frame": "world"}), views).mask[0, 0].any()
    assert encode(GeometryTeacher(), views).mask.all()


def test_targets_are_standardized_for_each_channel() -> None:
    features = encode(GeometryTeacher(), scene(8))
    flat = features.values.flatten(0, 3)
    assert torch.allclose(flat.mean(0), torch.zeros(108), atol=1e-4)
    assert torch.allclose(flat.std(0, correction=0), torch.ones(108), atol=1e-3)


def test_the_mean_of_each_position_can_be_removed() -> None:
    views = scene(8)
    features = encode(GeometryTeacher({"position_mean": True}), views)
    assert torch.allclose(features.values.mean(0), torch.zeros(()), atol=1e-4)
    constant = scene(8)
    assert constant.depth is not None
    constant.depth[:] = constant.depth[:1]
    # Features of about 1e-7 are rounding: a map that never changes teaches nothing.
    assert encode(GeometryTeacher({"position_mean": True}), constant).values.abs().max() < 1e-3


def test_statistics_accumulate_and_then_freeze() -> None:
    teacher = GeometryTeacher({"calibration_steps": 2})
    first, second, third = (scene(seed=seed) for seed in range(3))
    encode(teacher, first), encode(teacher, second)
    frozen = encode(teacher, third).values
    both = GeometryTeacher({"calibration_steps": 1})
    joined = Views(
        *(torch.cat([getattr(one, f), getattr(two, f)]) for one, two in [(first, second)] for f in ("images", "valid")),
        first.names,
        **{f: torch.cat([getattr(first, f), getattr(second, f)]) for f in ("depth", "intrinsics", "world_from_camera")},
    )
    encode(both, joined)
    assert torch.allclose(frozen, encode(both, third).values, atol=1e-4)


def test_fit_takes_statistics_from_given_views() -> None:
    teacher = GeometryTeacher()
    teacher.fit([(scene(seed=seed), GRID) for seed in range(3)])
    before = encode(teacher, scene(seed=9)).values
    assert torch.equal(before, encode(teacher, scene(seed=9)).values)
    with pytest.raises(ViewsError, match="no batch"):
        GeometryTeacher().fit([])


def test_fault_25_position_means_follow_the_camera_name() -> None:
    teacher = GeometryTeacher({"position_mean": True})
    teacher.fit([(scene(seed=seed), GRID) for seed in range(3)])
    views = scene(seed=9)
    swapped = views.select(torch.arange(3), [1, 0])
    straight = teacher.encode(None, views, [1], GRID)[0].values
    assert torch.equal(teacher.encode(None, swapped, [1], GRID)[0].values, straight[:, [1, 0]])
    alone = views.select(torch.arange(3), [1])
    assert torch.equal(teacher.encode(None, alone, [1], GRID)[0].values, straight[:, 1:])


def test_state_restores_the_targets_exactly() -> None:
    teacher, other = GeometryTeacher(), GeometryTeacher()
    encode(teacher, scene())
    other.load_state(teacher.state())
    for seed in (4, 5):
        assert torch.equal(encode(teacher, scene(seed=seed)).values, encode(other, scene(seed=seed)).values)


def test_fault_20_the_cell_that_moves_is_the_patch_that_moved() -> None:
    teacher = GeometryTeacher()
    before = encode(teacher, scene()).values
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3), (1, 2)):
        for view in range(2):
            views = scene()
            assert views.depth is not None
            views.depth[:, view, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.3
            moved = (teacher.encode(None, views, [1], GRID)[0].values - before).norm(dim=-1).mean(0)
            assert moved.argmax().item() == (view * 4 + row) * 4 + column
            assert (moved > 1e-6).sum() == 1


def test_what_does_not_fit_is_explained() -> None:
    with pytest.raises(ConfigError, match="does not divide into 12 x 12 sub-cells"):
        encode(GeometryTeacher({"cells": 3}), scene())
    with pytest.raises(ConfigError, match="depth_min must be below"):
        GeometryTeacher({"depth_min": 5, "depth_max": 1})
    with pytest.raises(ConfigError, match="Did you mean 'frame'"):
        GeometryTeacher({"fram": "world"})
    teacher = GeometryTeacher()
    encode(teacher, scene(v=2))
    encode(teacher, scene(v=1))
    positions = GeometryTeacher({"position_mean": True})
    encode(positions, scene())
    with pytest.raises(ShapeError, match="statistics of cam0 have shape"):
        encode(positions, scene(), (8, 8))


def test_depth_stays_exact_for_far_points() -> None:
    views = scene(1, 1)
    assert views.depth is not None
    views.depth[:] = 998.917
    features = raw(views, depth_max=2000.0)
    assert features[..., 2::3].allclose(torch.tensor(998.917), rtol=1e-6)


def test_the_far_end_of_depth_is_exclusive() -> None:
    views = scene(1, 1)
    assert views.depth is not None
    for depth, seen in ((9.999, True), (10.0, False)):
        views.depth[:] = depth
        found = encode(GeometryTeacher(), views)
        assert bool(found.mask.any()) is seen


def test_the_world_frame_requires_poses() -> None:
    assert "world_from_camera" in GeometryTeacher({"frame": "world"}).requires
    assert "world_from_camera" not in GeometryTeacher().requires
