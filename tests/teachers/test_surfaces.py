"""Normals, offsets and assumed cameras, against scenes whose geometry is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.errors import ConfigError, SfkitWarning
from sfkit.teachers.geometry import GeometryTeacher
from sfkit.teachers.surfaces import RunningMoments, assumed_intrinsics, neighbor_offsets, plane_normals
from sfkit.testing.checks import assert_rounded
from sfkit.views.types import Views

SIZE, FX = 32, 40.0
K = torch.tensor([[FX, 0.0, (SIZE - 1) / 2], [0.0, FX, (SIZE - 1) / 2], [0.0, 0.0, 1.0]])


def rays(size: int = SIZE) -> torch.Tensor:
    """``(h, w, 3)``: the points at depth 1."""
    at = (torch.arange(size) - K[0, 2]) / FX
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1)


def views_of(depth: torch.Tensor, *, valid: torch.Tensor | None = None, **geometry: torch.Tensor) -> Views:
    h, w = depth.shape
    inside = torch.ones(1, 1, h, w, dtype=torch.bool) if valid is None else valid[None, None]
    return Views(torch.rand(1, 1, 3, h, w), inside, ("front",), depth=depth[None, None], **geometry)


def normals_of(depth: torch.Tensor, cells: tuple[int, int] = (8, 8), flatness: float = 0.01) -> tuple:
    valid = (depth > 0) & depth.isfinite()
    found, known = plane_normals(
        depth[None, None], valid[None, None], K[None, None], cells, min_valid=0.5, flatness=flatness
    )
    return found[0, 0], known[0, 0]


@given(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), st.floats(0.3, 5.0))
def test_every_plane_has_its_normal(a: float, b: float, distance: float) -> None:
    wanted = torch.nn.functional.normalize(torch.tensor([a, b, -3.0]), dim=0)
    depth = -distance / (rays() @ wanted)
    found, known = normals_of(depth)
    assert known.all()
    assert torch.allclose(found, wanted.expand_as(found), atol=1e-3)


def test_a_sphere_has_the_normals_of_its_middle() -> None:
    center, radius = torch.tensor([0.0, 0.0, 4.0]), 2.5
    direction = rays(SIZE)
    b = direction @ center
    inside = b.square() - direction.square().sum(-1) * (center.square().sum() - radius**2)
    depth = torch.where(inside > 0, (b - inside.clamp(min=0).sqrt()) / direction.square().sum(-1), 0.0)
    found, known = normals_of(depth, flatness=0.05)
    points = (direction * depth.unsqueeze(-1)).reshape(8, 4, 8, 4, 3).mean((1, 3))
    wanted = torch.nn.functional.normalize(points - center, dim=-1)
    assert known[2:6, 2:6].all()
    assert (found * wanted).sum(-1)[2:6, 2:6].min() > 0.995


def test_the_border_of_an_object_has_no_normal() -> None:
    depth = torch.full((SIZE, SIZE), 2.0)
    depth[:, 14:] = 1.0
    _, known = normals_of(depth)
    assert not known[:, 3].any(), "columns 12 to 15 hold both"
    assert known[:, [0, 1, 2, 4, 5, 6, 7]].all()


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_fault_54_normals_ignore_pixels_without_depth(bad: float) -> None:
    depth = -2 / (rays() @ torch.nn.functional.normalize(torch.tensor([0.3, -0.2, -1.0]), dim=0))
    whole, _ = normals_of(depth)
    depth[0, 0] = bad
    depth[8:12, 8:12] = bad
    found, known = normals_of(depth)
    assert found.isfinite().all()
    assert not known[2, 2]
    assert known.sum() == 63
    assert torch.allclose(found[0, 0], whole[0, 0], atol=1e-3)


def test_a_cell_of_one_line_of_pixels_fixes_no_plane() -> None:
    depth = torch.zeros(SIZE, SIZE)
    depth[::4] = 1.0
    found, known = plane_normals(
        depth[None, None], (depth > 0)[None, None], K[None, None], (8, 8), min_valid=0.1, flatness=1.0
    )
    assert not known.any()
    assert (found == 0).all()


def test_offsets_lead_to_the_right_and_down() -> None:
    points = torch.arange(48.0).reshape(1, 1, 4, 4, 3) ** 2
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    found, known = neighbor_offsets(points, valid, 1)
    assert known.all()
    assert torch.equal(found[0, 0, 1, 2, :3], points[0, 0, 1, 3] - points[0, 0, 1, 2])
    assert torch.equal(found[0, 0, 1, 2, 3:], points[0, 0, 2, 2] - points[0, 0, 1, 2])
    assert torch.equal(found[0, 0, 1, 3, :3], points[0, 0, 1, 3] - points[0, 0, 1, 2]), "at the border: from the left"


def test_offsets_beside_a_patch_without_depth() -> None:
    points = torch.rand(1, 1, 4, 4, 3)
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    valid[0, 0, 1, 2] = False
    points[0, 0, 1, 2] = torch.nan
    found, known = neighbor_offsets(points, valid, 1)
    assert found.isfinite().all()
    assert not known[0, 0, 1, 2]
    assert not known[0, 0, 1, 3], "neither to the right nor from the left"
    assert torch.equal(found[0, 0, 1, 1, :3], points[0, 0, 1, 1] - points[0, 0, 1, 0])


# ---------------------------------------------------------------------------------------------- as a teacher's target


def encode(teacher: GeometryTeacher, views: Views, grid: tuple[int, int] = (4, 4)):
    teacher.observe((views, grid))
    return teacher.encode(None, views, [1], grid)[0]


def raw(views: Views, **options: object):
    return GeometryTeacher({"bands": 0, **options})._features(views, (4, 4))


def scene() -> Views:
    depth = -2 / (rays() @ torch.nn.functional.normalize(torch.tensor([0.4, -0.3, -1.0]), dim=0))
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return views_of(depth, intrinsics=K[None, None], world_from_camera=pose[None, None])


def test_parts_follow_the_order_of_the_option() -> None:
    both, mask = raw(scene(), features=["normals", "offsets"], reach=[1, 2])
    assert both.shape[-1] == 12 + 12
    assert both.shape[-1] == GeometryTeacher({"features": ["normals", "offsets"], "reach": [1, 2]}).dim(1)
    assert mask.all()
    normals, _ = raw(scene(), features="normals")
    offsets, _ = raw(scene(), features="offsets", reach=2)
    assert torch.equal(both[..., :12], normals)
    assert torch.equal(both[..., 18:], offsets)


def test_the_world_frame_rotates_normals_and_offsets() -> None:
    for feature in ("normals", "offsets"):
        camera, _ = raw(scene(), features=feature)
        world, _ = raw(scene(), features=feature, frame="world")
        turned = camera.reshape(-1, 3) @ scene().world_from_camera[0, 0, :3, :3].T
        assert torch.allclose(world.reshape(-1, 3), turned, atol=1e-5)


def test_targets_are_finite_and_masked_where_undefined() -> None:
    views = scene()
    views.depth[..., :9, :9] = torch.nan
    target = encode(GeometryTeacher({"features": ["points", "normals", "offsets"]}), views)
    assert target.values.isfinite().all()
    assert not target.mask[0, 0, 0, 0]
    assert target.mask[0, 0, 2:, 2:].all()


# ------------------------------------------------------------------------------------------------ unknown intrinsics


def test_an_assumed_camera_has_the_field_of_view() -> None:
    k = assumed_intrinsics(views_of(torch.ones(SIZE, SIZE)), 90.0)[0, 0]
    assert k[0, 0] == pytest.approx(SIZE / 2)
    assert k[1, 1] == k[0, 0]
    assert k[0, 2] == k[1, 2] == (SIZE - 1) / 2


def test_letterbox_bars_are_not_in_the_field_of_view() -> None:
    valid = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    valid[:, 8:24] = True
    k = assumed_intrinsics(views_of(torch.ones(SIZE, SIZE), valid=valid), 90.0)[0, 0]
    assert k[0, 0] == pytest.approx(8.0)
    assert k[0, 2] == 15.5


def test_a_stretched_image_is_undone() -> None:
    stretched = torch.diag(torch.tensor([2.0, 1.0, 1.0]))[None, None]
    k = assumed_intrinsics(views_of(torch.ones(SIZE, SIZE), source_to_view=stretched), 60.0)[0, 0]
    assert k[1, 1] == pytest.approx(k[0, 0] / 2)


def test_assumed_intrinsics_are_used_and_warned_of_once() -> None:
    teacher = GeometryTeacher({"fov": 2 * math.degrees(math.atan(SIZE / 2 / FX))})
    known = scene()
    with pytest.warns(SfkitWarning, match="intrinsics of front are unknown.*field of view of 43.6028 degrees") as said:
        assumed, _ = teacher._features(views_of(known.depth[0, 0]), (4, 4))
    wanted, _ = GeometryTeacher()._features(known, (4, 4))
    assert torch.allclose(assumed, wanted, atol=1e-4)
    teacher._features(views_of(known.depth[0, 0]), (4, 4))
    assert len(said) == 1


def test_only_the_camera_that_is_unknown_is_assumed() -> None:
    depth = torch.ones(1, 2, SIZE, SIZE)
    k = torch.stack([K, torch.full((3, 3), torch.nan)])[None]
    pictures, valid = torch.rand(1, 2, 3, SIZE, SIZE), torch.ones(1, 2, SIZE, SIZE, dtype=torch.bool)
    views = Views(pictures, valid, ("front", "wrist"), depth=depth, intrinsics=k)
    with pytest.warns(SfkitWarning, match="intrinsics of wrist are unknown"):
        features, mask = GeometryTeacher({"bands": 0})._features(views, (4, 4))
    assert mask.all()
    assert torch.equal(features[0, 0], GeometryTeacher({"bands": 0})._features(scene_at(depth), (4, 4))[0][0, 0])


def scene_at(depth: torch.Tensor) -> Views:
    return views_of(depth[0, 0], intrinsics=K[None, None])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": []}, "features"),
        ({"features": ["points", "points"]}, "each may be listed once"),
        ({"features": "edges"}, "features"),
        ({"reach": 0}, "reach.0 must be >= 1, got 0"),
        ({"fov": 180.0}, "fov"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GeometryTeacher(options)


def test_what_the_grid_does_not_hold_is_explained() -> None:
    with pytest.raises(ConfigError, match="4 away"):
        raw(scene(), features="offsets", reach=4)
    with pytest.raises(ConfigError, match="too small for normals"):
        raw(scene(), features="normals", cells=8)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_in_parts_or_at_once(parts: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(10, 3, 4, generator=g)
    mask = torch.rand(10, 3, generator=g) > 0.3
    whole, pieces = RunningMoments(), RunningMoments()
    whole.update({"a": (values, mask)})
    for part in torch.tensor_split(torch.arange(10), parts):
        pieces.update({"a": (values[part], mask[part])})
    assert_rounded(whole.mean("a"), pieces.mean("a"))
    assert_rounded(whole.std(), pieces.std())


@given(st.integers(0, 1000))
def test_against_torch(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = 3 + 2 * torch.randn(50, 4, generator=g)
    mask = torch.rand(50, generator=g) > 0.3
    moments = RunningMoments()
    moments.update({"all": (values, mask)})
    assert_rounded(moments.mean("all"), values[mask].mean(0))
    assert_rounded(moments.std(), values[mask].std(0, correction=0))


def test_the_deviation_is_about_the_mean_of_name_and_position() -> None:
    noise = torch.randn(200, 3, 2)
    offsets = torch.tensor([0.0, 100.0, -50.0])[:, None]
    mask = torch.ones(200, 3, dtype=torch.bool)
    moments = RunningMoments()
    moments.update({"left": (noise + offsets, mask), "right": (noise - 2 * offsets, mask)})
    wanted = (noise - noise.mean(0)).square().mean((0, 1)).sqrt()
    assert_rounded(moments.std(), wanted)
    assert_rounded(moments.mean("right"), (noise - 2 * offsets).mean(0))


def test_unseen_positions_take_the_overall_mean() -> None:
    moments = RunningMoments()
    values = torch.ones(2, 3, 4)
    values[:, 0] = torch.nan
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[:, 0] = False
    moments.update({"a": (values, mask)})
    assert torch.equal(moments.mean("a"), torch.ones(3, 4))
    assert torch.equal(moments.mean("never seen"), torch.ones(4))
    assert torch.equal(moments.std(), torch.ones(4)), "a channel that never varies is left alone"


def test_state_round_trip_and_empty() -> None:
    moments, other = RunningMoments(), RunningMoments()
    assert moments.empty
    assert moments.state() == {}
    with pytest.raises(RuntimeError, match="no statistics"):
        moments.mean("all")
    moments.update({"observation.images.front": (torch.rand(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))})
    other.load_state(moments.state(), 4)
    assert torch.equal(other.mean("observation.images.front"), moments.mean("observation.images.front"))
    assert torch.equal(other.std(), moments.std())
