"""Camera maths against independent formulas."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sfkit.views.geometry import resize_matrix, to_world, unproject, warp_intrinsics, warp_nearest

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
