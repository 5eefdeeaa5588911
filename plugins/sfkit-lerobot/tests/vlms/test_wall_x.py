"""What is Wall-X's own: 8-bit images that wrap around, and cameras that leave the prompt."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS

from sfkit.errors import ViewsError

FRONT, WRIST = CAMERAS


def test_fault_25_a_missing_camera_is_not_in_the_prompt(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("wall_x", cameras=(*CAMERAS, "observation.images.side"))
    raw = frames(policy, missing=(FRONT,))
    _, views, student = tapped(adapter_of(policy), dict(reversed(finish(policy, raw).items())), 1)
    assert views.names == (WRIST, "observation.images.side")
    assert student.values.shape[:4] == (2, 2, 9, 9)
    assert torch.equal(views.depth[:, 0, ::28, ::28], raw[f"{WRIST}_depth"][:, 0, ::14, ::14])


def test_fault_26_images_that_wall_x_would_wrap_are_an_error(build, batch_of, adapter_of) -> None:
    from lerobot.configs.types import NormalizationMode

    policy = build("wall_x")
    batch = batch_of(policy)
    with pytest.raises(ViewsError, match=r"Wall-X would change it"):
        adapter_of(policy).prompt({**batch, FRONT: batch[FRONT] * 2 - 1})
    policy.config.normalization_mapping = {"VISUAL": NormalizationMode.MEAN_STD}
    with pytest.raises(ViewsError, match="as if they were in"):
        adapter_of(policy).prompt(batch)
