"""Silent faults that the other files do not name, on real policies."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import tiny_lerobot_batch

from sfkit.errors import ConfigError


def test_fault_10_lerobot_optimizes_and_clips_the_projector(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    projector = {id(parameter) for parameter in policy.spatial_forcing.parameters()}
    # LeRobot's optimizers are built from the first, and its training loop clips the second.
    for parameters in (policy.get_optim_params(), policy.parameters()):
        assert projector <= {id(parameter) for parameter in parameters}


def test_fault_35_layer_k_lies_above_k_blocks(kind, build, adapter_of, tapped) -> None:
    policy, layer = build(kind), 2
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    before, _, _ = tapped(adapter, batch, layer)
    for block, is_below in ((layer, False), (layer - 1, True)):
        with torch.no_grad():
            adapter.decoder.layers[block].mlp.down_proj.weight.add_(0.1)
        after, _, _ = tapped(adapter, batch, layer)
        assert torch.equal(after, before) is not is_below


@pytest.mark.parametrize("layer", [-1, 5])
def test_fault_35_layers_out_of_range_say_what_is_valid(kind, layer, build, wrap) -> None:
    with pytest.raises(ConfigError, match=r"Student layers are 0 \(embeddings\) to 4"):
        wrap(build(kind), student_layer=layer)


def test_fault_43_lerobots_log_tells_the_losses_apart(kind, build, wrap) -> None:
    plain, policy = build(kind), wrap(build(kind), weight=0.25)
    batch = tiny_lerobot_batch(plain, geometry=True)
    torch.manual_seed(3)
    alone, _ = plain.forward(dict(batch))
    torch.manual_seed(3)
    loss, info = policy.forward(dict(batch))
    assert info["action_loss"] == pytest.approx(float(alone.detach()))
    assert float(loss.detach()) == pytest.approx(info["action_loss"] + 0.25 * info["sf_loss"], rel=1e-5)
