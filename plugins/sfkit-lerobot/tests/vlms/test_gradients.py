"""The figures of both gradients are those of autograd, in policies with a vision-language model."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`rope_config_validation` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("kind", ["groot", "xvla", "evo1", "vla_jepa", "wall_x", "molmoact2"])
def test_gradients_of_a_vlm_are_those_of_autograd(kind, build, wrap, batch_of, gradient_figures) -> None:
    policy = wrap(build(kind), student_layer=2, health={"every": 1}).train()
    batch = batch_of(policy)
    policy.forward(dict(batch))[0].backward()
    measured, true = gradient_figures(policy, batch)
    assert bool(true.isfinite().all())
    torch.testing.assert_close(measured, true, rtol=2e-3, atol=2e-4)
