"""Queries and keys of the policies' blocks, against the attention that their decoders report."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import tiny_lerobot_batch

from sfkit.testing.tiny import PatchTeacher
from sfkit.training.taps import Attention, Taps


@pytest.mark.parametrize("block", [1, 3])
def test_their_softmax_is_the_decoders_own_attention(kind, block, build, adapter_of, tapped, decoder_run) -> None:
    policy = build(kind)
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    kept = []
    with adapter.decoder.layers[block - 1].self_attn.register_forward_hook(lambda *call: kept.append(call[2][1])):
        decoder_run(policy, kind, adapter.decoder, batch)
    (reported,) = kept
    hidden, views, tokens = tapped(adapter, batch, block - 1)
    with torch.no_grad():
        found = adapter.attention_tokens(hidden, block, views)
    heads, width = adapter.attention_heads(block)
    assert found.values.shape == (*tokens.values.shape[:-1], 2 * heads * width)
    assert torch.equal(found.mask, tokens.mask)
    layout = adapter.layout(views.size)
    count = layout.grid[0] * layout.grid[1]
    for view in range(len(views.names)):
        if not found.mask[:, view].any():
            continue
        place = slice(view * layout.length + layout.before, view * layout.length + layout.before + count)
        wanted = reported[:, :, place, place]
        queries, keys = found.values[:, view].reshape(len(hidden), count, 2, heads, width).transpose(1, 3).unbind(2)
        own = (queries @ keys.mT).softmax(-1)
        torch.testing.assert_close(own, wanted / wanted.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    # Within a view, a position that is off by a constant would not show: so compare across views too.
    visual = torch.cat([torch.arange(count) + v * layout.length + layout.before for v in range(2)])
    both = found.values[:, :2].reshape(len(hidden), 2 * count, 2, heads, width).transpose(1, 3)
    logits = both[:, :, 0] @ both[:, :, 1].mT
    wanted = reported[:, :, visual][..., visual]
    torch.testing.assert_close(logits.softmax(-1), wanted / wanted.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_a_policy_trains_with_attention(kind, build, wrap) -> None:
    policy = build(kind).train()
    if kind == "smolvla":
        policy.requires_grad_(True)
    block = {"student_layer": 2, "teacher": PatchTeacher(), "teacher_layer": 2, "objective": "attention"}
    wrap(policy, None, pairs=[block])
    batch = tiny_lerobot_batch(policy)
    policy.forward(dict(batch))[0].backward()
    assert policy.spatial_forcing.metrics()["sf_loss"] > 0
    attention = policy.spatial_forcing.adapter.decoder.layers[1].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        assert projection.weight.grad.abs().max() > 0
    assert policy.spatial_forcing.status().reaches_policy


def test_the_key_of_a_tap_is_understood(build, adapter_of, views_of) -> None:
    policy = build("pi0")
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    site = Attention(2)
    taps = Taps(adapter, [site])
    _, captured, _ = taps.run(policy.forward, (dict(batch),), {})
    taps.remove()
    found = site.tokens(adapter, captured[site], views_of(adapter, batch))
    assert found.values.requires_grad
