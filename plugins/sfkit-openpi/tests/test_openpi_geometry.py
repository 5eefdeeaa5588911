"""Depth and calibration fit an image whose pixels stay in place, and no other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from openpi.models_pytorch import preprocessing_pytorch as stand_in
from sfkit_openpi import OpenPIAdapter
from tiny_openpi import CAMERAS

from sfkit.errors import SfkitError, SfkitWarning, ViewsError
from sfkit.views.cameras import Camera, CameraRig

BASE, LEFT, RIGHT = CAMERAS


def rig_of(setup, *names, source=None, **changes):
    height, width = source or (setup.size, setup.size)
    camera = Camera(
        width=width,
        height=height,
        intrinsics=((60.0, 0, width / 2 - 0.5), (0, 60.0, height / 2 - 0.5), (0, 0, 1)),
        depth_unit="m",
        **changes,
    )
    return CameraRig({name: camera.model_copy(update={"depth_key": f"{name}_depth"}) for name in names})


def with_depth(batch, setup, *names, source=None):
    height, width = source or (setup.size, setup.size)
    ramp = 0.5 + 0.01 * torch.arange(width, dtype=torch.float32)
    maps = {f"{name}_depth": ramp.expand(len(batch[1]), height, width).unsqueeze(-1).clone() for name in names}
    return dataclasses.replace(batch[0], images={**batch[0].images, **maps}), batch[1]


def test_fault_27_a_moved_camera_gets_no_depth(setup, look) -> None:
    adapter = OpenPIAdapter(setup.build())
    adapter.cameras = rig_of(setup, BASE, LEFT)
    with pytest.warns(SfkitWarning, match=r"base_0_rgb are left out: openpi crops and rotates"):
        _, views, _ = look(adapter, with_depth(setup.batch(), setup, BASE, LEFT))
    assert not bool(views.depth[:, 0].any())
    assert bool((views.depth[:, 1] > 0).all())
    assert views.source_to_view is None
    _, again, _ = look(adapter, with_depth(setup.batch(seed=1), setup, BASE, LEFT), seed=2)
    assert torch.equal(again.depth, views.depth), "and nothing is said a second time"


def test_fault_27_only_moved_cameras_are_an_error_with_a_remedy(setup, wrap) -> None:
    policy = wrap(setup.build(), "geometry", cameras=rig_of(setup, BASE))
    with pytest.raises(SfkitError, match=r'(?s)base_0_rgb: the pixels are moved.*if "wrist" not in key.*off there'):
        policy(*with_depth(setup.batch(), setup, BASE))


def test_a_policy_that_moves_nothing_gives_everything(standin, look, monkeypatch) -> None:
    monkeypatch.setattr(stand_in, "_moved", lambda image: image)
    adapter = OpenPIAdapter(standin.build())
    adapter.cameras = rig_of(standin, *CAMERAS)
    _, views, _ = look(adapter, with_depth(standin.batch(), standin, *CAMERAS))
    assert bool((views.depth > 0).all())
    assert torch.equal(views.source_to_view, torch.eye(3).expand(2, 3, 3, 3))


def test_depth_and_intrinsics_follow_the_letterbox(setup, look) -> None:
    side, source = setup.size, (setup.size // 2, setup.size)
    adapter = OpenPIAdapter(setup.build())
    adapter.cameras = rig_of(setup, LEFT, source=source)
    batch = with_depth(setup.batch(source=source), setup, LEFT, source=source)
    _, views, _ = look(adapter, batch)
    top = side // 4
    assert views.intrinsics[0, 1, 1, 2] == pytest.approx(source[0] / 2 - 0.5 + top)
    ramp = 0.5 + 0.01 * torch.arange(side)
    torch.testing.assert_close(views.depth[0, 1, top:-top], ramp.expand(side // 2, side))
    assert not bool(views.depth[0, 1, :top].any())
    assert bool(((views.depth[:, 1] > 0) == views.valid[:, 1]).all())


def test_a_calibration_that_needs_bars_refuses_images_without(standin, wrap) -> None:
    policy = wrap(standin.build(), "geometry", cameras=rig_of(standin, LEFT, source=(28, 56)))
    with pytest.raises(ViewsError, match=r"left_wrist_0_rgb is calibrated for 28x56.*should have black bars"):
        policy(*with_depth(standin.batch(), standin, LEFT))


def test_geometry_trains_on_the_wrist_camera(standin, wrap) -> None:
    policy = wrap(standin.build(), "geometry", cameras=rig_of(standin, LEFT))
    losses = policy(*with_depth(standin.batch(), standin, LEFT))
    losses.mean().backward()
    metrics = policy.spatial_forcing.metrics()
    assert 0 < metrics["sf_loss"] < 2
    assert metrics["sf_valid_token_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "No cameras were given"),
        (("head",), "The cameras given are head"),
        ((LEFT,), "no depth under left"),
    ],
)
def test_what_is_missing_is_explained(names, said, standin, wrap) -> None:
    rig = rig_of(standin, *names) if names else None
    policy = wrap(standin.build(), "geometry", cameras=rig)
    with pytest.raises(SfkitError, match=said):
        policy(*standin.batch())
