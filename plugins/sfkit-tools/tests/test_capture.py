from __future__ import annotations

from typing import Any

import pytest
import torch
from sfkit_tools import capture_tokens

from sfkit import SpatialForcing
from sfkit.errors import AdapterError, ConfigError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch


def hooks(policy: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in policy.modules())


def policy() -> TinyPolicy:
    torch.manual_seed(0)
    return TinyPolicy()


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_tokens_are_the_residual_stream_at_that_layer(layer: int) -> None:
    tiny, batch = policy(), tiny_batch()
    tokens, views = capture_tokens(tiny, batch, layer, TinyAdapter(tiny))
    with torch.no_grad():
        hidden, attend = tiny._embed(batch)
        for block in tiny.blocks[:layer]:
            hidden = block(hidden, attend)
    assert_rounded(tokens.values.flatten(1, 3), hidden[:, :-1])
    assert tokens.values.shape == (2, 2, 4, 4, 16)
    assert views.names == ("cam0", "cam1")
    assert not tokens.values.requires_grad


def test_nothing_is_left_behind() -> None:
    tiny = policy()
    tiny.train()
    tiny.blocks[1].eval()
    modes = [module.training for module in tiny.modules()]
    before, state = hooks(tiny), torch.get_rng_state()
    capture_tokens(tiny, tiny_batch(), 2, TinyAdapter(tiny))
    assert [module.training for module in tiny.modules()] == modes
    assert hooks(tiny) == before
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_nothing_is_left_behind_when_the_policy_fails() -> None:
    tiny, state = policy(), torch.get_rng_state()
    tiny.train()
    adapter = TinyAdapter(tiny)
    batch: dict[str, Any] = {**tiny_batch(), "action": torch.zeros(2, 99)}
    with pytest.raises(RuntimeError):
        capture_tokens(tiny, batch, 2, adapter)
    assert hooks(tiny) == 0
    assert tiny.training
    assert adapter.cameras is None
    assert torch.equal(state, torch.get_rng_state())


def test_a_wrapped_policy_has_the_same_tokens_and_keeps_its_tap() -> None:
    tiny, batch = policy(), tiny_batch()
    plain, _ = capture_tokens(tiny, batch, 2, TinyAdapter(tiny))
    wrapped = SpatialForcing.wrap(tiny, "geometry", student_layer=2, adapter=TinyAdapter(tiny))
    before = hooks(wrapped)
    found, _ = capture_tokens(wrapped, batch, 2)
    assert torch.equal(found.values, plain.values)
    assert hooks(wrapped) == before
    wrapped.train()
    wrapped(batch)
    assert wrapped.spatial_forcing.status().steps == 1  # type: ignore[union-attr]


def test_layer_out_of_range_and_unknown_policies_are_explained() -> None:
    tiny = policy()
    with pytest.raises(ConfigError, match=r"0 \(embeddings\) to 3"):
        capture_tokens(tiny, tiny_batch(), 4, TinyAdapter(tiny))
    with pytest.raises(AdapterError):
        capture_tokens(torch.nn.Linear(2, 2), {}, 0)
