"""The student's token and the teacher's cell of one place must be the same: tests all conventions at once."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit.teachers.geometry import GeometryTeacher

FRONT, WRIST = CAMERAS
# Cells off the diagonal distinguish rows from columns; those of the rectangles avoid the padding.
SQUARE = [(0, 0), (0, 3), (3, 0), (3, 3), (1, 2)]
WIDE = [(1, 0), (1, 3), (2, 0), (2, 3), (2, 1)]
TALL = [(0, 1), (3, 1), (0, 2), (3, 2), (1, 2)]
CASES = [(side, cell) for side, cells in ((None, SQUARE), ((48, 64), WIDE), ((64, 48), TALL)) for cell in cells]


def pixels_of_cell(views, view: int, cell: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """``(h, w)`` bool: pixels of the dataset's image that ``source_to_view`` puts into a cell of the 4 x 4 grid."""
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
    x, y, _ = torch.einsum(
        "ij,jhw->ihw", views.source_to_view[0, view], torch.stack([columns, rows, torch.ones_like(rows)])
    )
    h, w = views.size
    return ((y + 0.5) // (h / 4) == cell[0]) & ((x + 0.5) // (w / 4) == cell[1])


def most_moved(before, after) -> tuple[int, int, int]:
    moved = (after.values - before.values)[0].norm(dim=-1)
    return tuple(int(i) for i in torch.unravel_index(moved.argmax(), moved.shape))


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize(("size", "cell"), CASES)
def test_fault_20_a_patch_moves_its_own_token_and_its_own_cell(
    kind, camera, size, cell, build, adapter_of, tapped
) -> None:
    policy = build(kind) if size is None else build(kind, image_shape=(3, *size))
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, batch_size=1, geometry=True)
    _, views, before = tapped(adapter, batch, 0)
    view = views.names.index(camera)
    patch = pixels_of_cell(views, view, cell, batch[camera].shape[-2:])
    assert bool(before.mask[0, view, cell[0], cell[1]])

    changed = dict(batch)
    changed[camera] = torch.where(patch, 1 - batch[camera].round(), batch[camera])
    changed[f"{camera}_depth"] = torch.where(patch, batch[f"{camera}_depth"] + 0.5, batch[f"{camera}_depth"])
    _, views_after, after = tapped(adapter, changed, 0)
    assert most_moved(before, after) == (view, *cell)

    teacher = GeometryTeacher()
    teacher.fit([(views, before.grid)])
    (target,), (target_after,) = (teacher.encode(None, v, [1], before.grid) for v in (views, views_after))
    assert most_moved(target, target_after) == (view, *cell)


@pytest.mark.parametrize("cell", SQUARE)
def test_fault_16_markers_around_images_do_not_shift_the_grid(cell, build, adapter_of, tapped) -> None:
    policy = build("smolvla", add_image_special_tokens=True)
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy, batch_size=1)
    _, views, before = tapped(adapter, batch, 0)
    patch = pixels_of_cell(views, 1, cell, batch[WRIST].shape[-2:])
    changed = {**batch, WRIST: torch.where(patch, 1 - batch[WRIST].round(), batch[WRIST])}
    assert most_moved(before, tapped(adapter, changed, 0)[2]) == (1, *cell)


def test_fault_25_a_missing_first_camera_shifts_no_other(kind, build, adapter_of, tapped) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, batch_size=1, missing=[FRONT])
    _, views, before = tapped(adapter, batch, 0)
    patch = pixels_of_cell(views, 0, (0, 3), batch[WRIST].shape[-2:])
    changed = {**batch, WRIST: torch.where(patch, 1 - batch[WRIST].round(), batch[WRIST])}
    assert views.names[0] == WRIST
    assert most_moved(before, tapped(adapter, changed, 0)[2]) == (0, 0, 3)
