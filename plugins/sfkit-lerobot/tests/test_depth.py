"""Depth maps as sensors and datasets give them: whole numbers, other sizes, and ranges with clipped ends."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit.errors import ViewsError

FRONT = CAMERAS[0]
DEPTH = f"{FRONT}_depth"


@pytest.fixture
def depth_of(adapter_of, views_of, build):
    """``depth_of(value, **camera)``: depth ``(b, h, w)`` in meters that the teacher gets for a batch's map."""

    def depth_of(value, **camera):
        policy = build("smolvla")
        adapter = adapter_of(policy)
        rig = adapter.cameras
        rig.cameras[FRONT] = rig.cameras[FRONT].model_copy(update=camera)
        batch = {**tiny_lerobot_batch(policy, batch_size=len(value), geometry=True), DEPTH: value}
        return views_of(adapter, batch).depth[:, 0]

    return depth_of


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 1, 64, 64), (2, 3, 1, 64, 64)])
def test_depth_may_be_whole_millimeters(dtype, shape, depth_of) -> None:
    millimeters = torch.randint(1, 255, shape).to(dtype)
    expected = millimeters.reshape(2, -1, 64, 64)[:, -1].float() * 0.001
    found = depth_of(millimeters, depth_unit="mm")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_whole_millimeters_beyond_a_signed_range(depth_of) -> None:
    far = torch.full((1, 64, 64), 60_000, dtype=torch.uint16)
    torch.testing.assert_close(depth_of(far, depth_unit="mm"), torch.full((1, 64, 64), 60.0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 65), (120, 121)])
def test_fault_60_depth_of_the_same_shape_may_have_any_size(height, width, depth_of) -> None:
    assert bool((depth_of(torch.full((1, 1, height, width), 0.5)) == 0.5).all())


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (64, 66), (66, 64)])
def test_fault_60_depth_of_another_aspect_ratio_is_refused(height, width, depth_of) -> None:
    with pytest.raises(ViewsError, match=rf"front_depth is {height}x{width}.*64x64: another aspect ratio"):
        depth_of(torch.full((1, 1, height, width), 0.5))
