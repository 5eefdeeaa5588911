"""Camera maths against independent formulas."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.views.cameras import Camera, CameraRig
from sfkit.views.geometry import (
    Letterbox,
    resize_matrix,
    to_world,
    unchanged,
    unproject,
    view_geometry,
    warp_intrinsics,
    warp_nearest,
)

sides = st.integers(2, 40)


def test_unproject_inverts_projection() -> None:
    k = torch.tensor([[50.0, 0.3, 3.7], [0.0, 40.0, 2.9], [0.0, 0.0, 1.0]]).double()
    depth = torch.rand(2, 6, 9).double() + 0.5
    points = unproject(depth, k.expand(2, 3, 3))
    pixels = points @ k.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    columns, rows = torch.meshgrid(torch.arange(9.0), torch.arange(6.0), indexing="xy")
    assert torch.allclose(pixels[0], torch.stack([columns, rows], -1).double())
    assert torch.equal(points[..., 2], depth)


def test_to_world_is_the_rigid_transform() -> None:
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pose[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    moved = to_world(torch.tensor([1.0, 0.0, 0.5]).expand(2, 3, 3), pose)
    assert torch.allclose(moved, torch.tensor([1.0, 3.0, 3.5]).expand(2, 3, 3))


@given(sides, sides, sides, sides)
def test_resizing_keeps_edges_on_edges(h: int, w: int, th: int, tw: int) -> None:
    m = resize_matrix((h, w), (th, tw), (5, 7))
    first = m @ torch.tensor([-0.5, -0.5, 1.0])
    last = m @ torch.tensor([w - 0.5, h - 0.5, 1.0])
    assert torch.allclose(first[:2], torch.tensor([7 - 0.5, 5 - 0.5]), atol=1e-3)
    assert torch.allclose(last[:2], torch.tensor([7 + tw - 0.5, 5 + th - 0.5]), atol=1e-3)


def test_warp_nearest_agrees_with_torch_and_pads_with_zero() -> None:
    depth = torch.rand(2, 6, 9) + 1
    doubled = warp_nearest(depth, resize_matrix((6, 9), (12, 18)), (12, 18))
    assert torch.equal(doubled, depth.repeat_interleave(2, 1).repeat_interleave(2, 2))
    boxed = warp_nearest(depth, resize_matrix((6, 9), (6, 9), (2, 0)), (10, 9))
    assert torch.equal(boxed[:, 2:8], depth)
    assert (boxed[:, :2] == 0).all()
    assert (boxed[:, 8:] == 0).all()


def test_warp_nearest_never_mixes_values_and_keeps_nan_apart() -> None:
    depth = torch.tensor([[[1.0, torch.nan], [5.0, 9.0]]])
    warped = warp_nearest(depth, resize_matrix((2, 2), (7, 7)), (7, 7))
    assert set(warped[warped.isfinite()].tolist()) <= {1.0, 5.0, 9.0}


def test_warped_intrinsics_see_the_same_point() -> None:
    k = torch.tensor([[50.0, 0.0, 4.0], [0.0, 50.0, 3.0], [0.0, 0.0, 1.0]])
    m = resize_matrix((6, 9), (12, 18), (3, 1))
    point = torch.tensor([0.02, -0.01, 1.0])
    assert torch.allclose(warp_intrinsics(k, m) @ point, m @ (k @ point), atol=1e-5)


def test_fault_54_a_pixel_of_the_view_is_its_point_in_space() -> None:
    # Nothing is square or alike: swapped sizes, offsets or focal lengths all move the point.
    k = ((61.0, 0.0, 23.5), (0.0, 47.0, 11.5), (0.0, 0.0, 1.0))
    camera = Camera(width=64, height=32, intrinsics=k, depth_key="depth", depth_unit="mm")
    # Row 2 and column 26 of the map are around row 4.5 and column 52.5 of the image, 1.7 m away.
    point = 1.7 * torch.tensor([(52.5 - 23.5) / 61, (4.5 - 11.5) / 47, 1.0])
    # The map is of half the image's size, and holds the point alone; the view is the image, made larger, with borders.
    depth = torch.zeros(2, 16, 32)
    depth[:, 2, 26] = 1700
    box = Letterbox(source=(32, 64), resized=(48, 96), view=(56, 100), offset=(5, 3))
    seen = torch.zeros(2, 2, 3, 56, 100)
    found = view_geometry(CameraRig({"front": camera}), {"depth": depth}, {"top": None, "front": box}, seen)
    assert found.world_from_camera is None
    assert found.depth is not None
    assert found.intrinsics is not None
    assert (found.depth[:, 0] == 0).all()  # a view without a calibrated camera
    points = unproject(found.depth[:, 1], found.intrinsics[:, 1])
    known = points[found.depth[:, 1] > 0]
    assert len(known) == 2 * 3 * 3
    # The pixel of the map reaches one of the image to each side, 1.7 m / 61 and 1.7 m / 47 wide there.
    assert ((known - point).abs() <= torch.tensor([1.7 / 61, 1.7 / 47, 1e-3])).all()
    assert torch.allclose(known.mean(0), point, atol=1e-3)


def test_fault_54_a_view_of_the_image_keeps_depth_and_intrinsics() -> None:
    k = ((61.0, 0.0, 23.5), (0.0, 47.0, 11.5), (0.0, 0.0, 1.0))
    pose = ((0.0, -1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 2.0), (0.0, 0.0, 1.0, 3.0), (0.0, 0.0, 0.0, 1.0))
    camera = Camera(width=9, height=6, intrinsics=k, depth_key="depth", depth_unit="m", world_from_camera=pose)
    depth = torch.rand(2, 6, 9) + 0.5
    rig, like = CameraRig({"front": camera}), torch.zeros(2, 1, 3, 6, 9)
    found = view_geometry(rig, {"depth": depth}, {"front": unchanged((6, 9))}, like)
    assert torch.equal(found.depth, depth[:, None])  # type: ignore[arg-type]
    assert torch.equal(found.intrinsics, torch.tensor(k).expand(2, 1, 3, 3))  # type: ignore[arg-type]
    assert torch.equal(found.world_from_camera, torch.tensor(pose).expand(2, 1, 4, 4))  # type: ignore[arg-type]
