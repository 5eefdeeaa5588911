"""The token and the feature of one place must be the same one: corners and center, every camera."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_openpi import CAMERAS

from sfkit.testing.checks import CorrespondenceError, check_correspondence


def nearly_still(size: int) -> int:
    """A seed whose first draws crop in the middle and hardly turn, so that a patch stays in its cell."""
    spare = size - int(size * 0.95)
    for seed in range(2000):
        torch.manual_seed(seed)
        top, left = (int(torch.randint(0, spare + 1, (1,))) for _ in range(2))
        angle = float(torch.rand(1)) * 10 - 5
        if abs(top - spare / 2) <= 1 and abs(left - spare / 2) <= 1 and abs(angle) < 0.5:
            return seed
    raise AssertionError


def perturb(batch, view, box):
    observation, actions = batch
    name = CAMERAS[view]
    image = observation.images[name].clone()
    rows, columns = box
    image[:, :, rows, columns] = -image[:, :, rows, columns].sign() * 0.9
    return dataclasses.replace(observation, images={**observation.images, name: image}), actions


def run(setup, policy, batch, **options):
    seed = nearly_still(setup.size)

    def call(policy, batch):
        torch.manual_seed(seed)
        return policy(*batch)

    side = setup.size // 14
    cells = [(0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1), (side // 2, side // 2 - 1)]
    check_correspondence(policy, batch, perturb, run=call, cells=cells)


def test_fault_16_20_a_patch_moves_its_own_token_and_feature(setup, wrap) -> None:
    run(setup, wrap(setup.build(), student_layer=0), setup.batch(1))


def test_fault_25_a_masked_camera_keeps_its_place(setup, wrap) -> None:
    batch = setup.batch(2, missing=[CAMERAS[1]])
    policy = wrap(setup.build(), student_layer=0)
    run(setup, policy, batch)
    policy(*batch)
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] == pytest.approx(2 / 3)


def test_fault_25_the_order_of_the_observation_does_not_matter(setup, wrap) -> None:
    observation, actions = setup.batch(1)
    turned = dataclasses.replace(
        observation,
        images=dict(reversed(observation.images.items())),
        image_masks=dict(reversed(observation.image_masks.items())),
    )
    run(setup, wrap(setup.build(), student_layer=0), (turned, actions))


def test_fault_16_the_shift_of_the_openvla_recipe_is_caught(standin, wrap) -> None:
    policy = wrap(standin.build(), student_layer=0, adapter=("openpi", {"token_shift": 1}))
    with pytest.raises(CorrespondenceError):
        run(standin, policy, standin.batch(1))
