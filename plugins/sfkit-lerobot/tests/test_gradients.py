"""The figures of both gradients are those of autograd."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import tiny_act, tiny_diffusion, tiny_image_stats, tiny_lerobot_batch, tiny_rig

from sfkit import SpatialForcing

SEPARATE = {"use_separate_rgb_encoder_per_camera": True}
#: Policy, its options and student layer.
RESNETS = {
    "act": (tiny_act, {}, 1),
    "act-resnet": (tiny_act, {}, 0),
    "diffusion": (tiny_diffusion, {}, 3),
    "diffusion-separate": (tiny_diffusion, SEPARATE, 3),
    "diffusion-separate-pool": (tiny_diffusion, SEPARATE, 4),
}


def require_same(figures) -> None:
    measured, true = figures
    assert bool(true.isfinite().all())
    torch.testing.assert_close(measured, true, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("layer", [1, 3])
def test_gradients_of_a_prefix_are_those_of_autograd(kind, layer, build, wrap, gradient_figures) -> None:
    policy = wrap(build(kind), student_layer=layer, health={"every": 1})
    batch = tiny_lerobot_batch(policy, geometry=True)
    policy.forward(dict(batch))[0].backward()
    require_same(gradient_figures(policy, batch))


@pytest.mark.parametrize("case", RESNETS)
def test_fault_66_gradients_of_maps_are_those_of_autograd(case, gradient_figures) -> None:
    make, options, layer = RESNETS[case]
    torch.manual_seed(0)
    policy = make(**options)
    adapter = (policy.config.type, {"image_stats": tiny_image_stats(policy)})
    SpatialForcing.wrap(
        policy, "geometry", student_layer=layer, adapter=adapter, cameras=tiny_rig(policy), health={"every": 1}
    )
    policy.train()
    batch = tiny_lerobot_batch(policy, geometry=True)
    policy.forward(dict(batch))[0].backward()
    require_same(gradient_figures(policy, batch))
