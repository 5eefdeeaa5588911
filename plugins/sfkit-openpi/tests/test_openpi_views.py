"""What the teacher is shown: the very pixels of the vision tower, without bars and absent cameras."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from sfkit_openpi import OpenPIAdapter
from tiny_openpi import CAMERAS

from sfkit.errors import SfkitWarning, ViewsError
from sfkit.testing.tiny import PatchTeacher

BASE, LEFT, RIGHT = CAMERAS


def tower_of(policy):
    return policy.paligemma_with_expert.paligemma.model.vision_tower


def change(batch, images=None, masks=None):
    observation, actions = batch
    images = {**observation.images, **(images or {})}
    masks = {**observation.image_masks, **(masks or {})}
    return dataclasses.replace(observation, images=images, image_masks=masks), actions


def test_fault_27_views_are_the_pixels_that_the_vision_tower_saw(setup, look) -> None:
    policy, batch, given = setup.build(), setup.batch(), []
    tower_of(policy).register_forward_pre_hook(lambda module, args: given.append(args[0]))
    _, views, _ = look(OpenPIAdapter(policy), batch)
    assert views.names == CAMERAS
    for column, name in enumerate(CAMERAS):
        assert torch.equal(views.images[:, column], given[column] * 0.5 + 0.5)
        moved = (views.images[:, column] - (batch[0].images[name] * 0.5 + 0.5)).abs().mean()
        assert moved > 0.005, "augmentation has changed every image"


def test_fault_26_views_are_in_0_to_1(setup, look) -> None:
    _, views, _ = look(OpenPIAdapter(setup.build()), setup.batch())
    for image in views.images.flatten(0, 1):
        assert 0 <= float(image.min()) < 0.45
        assert 0.55 < float(image.max()) <= 1


@pytest.mark.parametrize("scale", ["0-255", "uint8"])
def test_fault_26_images_of_another_range_are_an_error(scale, standin, wrap) -> None:
    policy, batch = wrap(standin.build()), standin.batch()
    image = (batch[0].images[LEFT] * 0.5 + 0.5) * 255
    batch = change(batch, {LEFT: image if scale == "0-255" else image.to(torch.uint8)})
    with pytest.raises(ViewsError, match=r"left_wrist_0_rgb (ranges from .* expected \[-1, 1\]|is of type)"):
        policy(*batch)


def test_fault_26_images_in_0_to_1_are_suspected(standin, wrap) -> None:
    policy, batch = wrap(standin.build()), standin.batch()
    batch = change(batch, {name: batch[0].images[name] * 0.5 + 0.5 for name in CAMERAS})
    with pytest.warns(SfkitWarning, match=r"seem to be in \[0, 1\]"):
        policy(*batch)


def test_fault_25_a_mask_stays_with_its_camera(setup, look) -> None:
    observation, actions = setup.batch(3)
    masks = {RIGHT: torch.tensor([True, False, False]), LEFT: torch.tensor([True, True, False])}
    turned = dict(reversed(observation.images.items()))
    batch = dataclasses.replace(observation, images=turned, image_masks=masks), actions
    _, views, tokens = look(OpenPIAdapter(setup.build()), batch)
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert torch.equal(views.present, present), "a camera without a mask is there, as in openpi"
    assert torch.equal(tokens.mask, present[:, :, None, None].expand_as(tokens.mask))


def test_fault_23_an_absent_camera_changes_no_loss_or_gradient(standin, wrap) -> None:
    found = []
    for shade in (-1.0, 0.7):
        policy = wrap(standin.build(), PatchTeacher({"joint": True}), weight=1.0)
        absent = {LEFT: torch.full((2, 3, standin.size, standin.size), shade)}
        torch.manual_seed(4)
        policy(*change(standin.batch(), absent, {LEFT: torch.zeros(2, dtype=torch.bool)})).mean().backward()
        gradient = policy.spatial_forcing.pairs.parameters()
        found.append((policy.spatial_forcing.metrics(), torch.cat([p.grad.flatten() for p in gradient])))
    (black, one), (bright, two) = found
    assert black["sf_valid_token_fraction"] == pytest.approx(2 / 3)
    assert black["sf_loss"] == pytest.approx(bright["sf_loss"], abs=1e-6)
    torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("where", ["pipeline", "forward"])
def test_fault_24_black_bars_are_masked(where, setup, look) -> None:
    side = setup.size
    source = (side // 2, side)
    batch = setup.batch(source=source)
    if where == "forward":  # openpi letterboxes what the pipeline has not
        quarter = side // 4
        crop = {name: image[:, :, quarter:-quarter] for name, image in batch[0].images.items()}
        batch = change(batch, crop)
    _, views, tokens = look(OpenPIAdapter(setup.build()), batch)
    for column in (1, 2):  # wrist cameras are not moved
        inside = views.valid[:, column]
        assert bool(inside[:, side // 4 : -(side // 4)].all())
        assert not bool(inside[:, : side // 4].any() | inside[:, -(side // 4) :].any())
    share = views.valid[:, 0].float().mean()
    assert 0.4 < share < 0.6, "cropped and turned, but half of it is image still"
    rows = tokens.mask[:, 1:].any(-1).any(1)
    assert not bool(rows[:, 0].any() | rows[:, -1].any())


def test_fault_24_a_black_image_is_no_camera_for_any_mask(setup, look) -> None:
    batch = setup.batch()
    batch = change(batch, {name: torch.full_like(batch[0].images[name], -1.0) for name in (BASE, RIGHT)})
    assert all(bool(mask.all()) for mask in batch[0].image_masks.values())
    _, views, _ = look(OpenPIAdapter(setup.build()), batch)
    assert views.present.all(0).tolist() == [False, True, False]


def test_bars_may_be_declared_part_of_the_scene(standin, look) -> None:
    batch = standin.batch(source=(28, 56))
    _, views, _ = look(OpenPIAdapter(standin.build(), {"bars": False}), batch)
    assert bool(views.valid.all())


def test_an_image_without_bars_keeps_its_dark_corners(standin, look) -> None:
    batch = standin.batch()
    image = batch[0].images[LEFT].clone()
    image[:, :, :20, :20] = -1.0
    _, views, _ = look(OpenPIAdapter(standin.build()), change(batch, {LEFT: image}))
    assert bool(views.valid.all())


def test_the_order_of_cameras_is_that_of_openpis_module(standin, monkeypatch) -> None:
    from openpi.models_pytorch import preprocessing_pytorch as preprocessing

    adapter = OpenPIAdapter(standin.build())
    assert adapter.names == CAMERAS
    monkeypatch.setattr(preprocessing, "IMAGE_KEYS", ("only",))
    assert adapter.names == ("only",)
    assert OpenPIAdapter(standin.build(), {"cameras": ["a", "b"]}).names == ("a", "b")


def test_another_number_of_cameras_is_an_error(standin, wrap) -> None:
    policy = wrap(standin.build(), adapter=("openpi", {"cameras": [BASE, LEFT]}))
    with pytest.raises(ViewsError, match=r"ran 3 times in this forward, for 2 cameras \(base_0_rgb, left"):
        policy(*standin.batch())
    policy = wrap(standin.build(), adapter=("openpi", {"cameras": [BASE, LEFT, "head"]}))
    with pytest.raises(ViewsError, match="no image of head; it has base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb"):
        policy(*standin.batch())
