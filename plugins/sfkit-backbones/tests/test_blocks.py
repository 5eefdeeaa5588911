"""Blocks against a plain transformer written out, and their precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sfkit_backbones.blocks import Block, cast_products
from sfkit_backbones.randomize import randomize
from sfkit_backbones.rope import grid_positions, rope_table, rotate

from sfkit.testing.checks import assert_rounded, float64


def plain(block: Block, x: torch.Tensor) -> torch.Tensor:
    """What ``block`` should compute, with explicit softmax attention."""
    rope = rope_table(grid_positions((2, 3)), 8)
    y = F.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias, 1e-6)
    y = F.linear(y, block.attn.qkv.weight, block.attn.qkv.bias)
    heads = []
    for h in range(2):
        q, k, v = (y[..., i * 16 + h * 8 : i * 16 + h * 8 + 8] for i in range(3))
        q, k = (
            F.layer_norm(t, (8,), n.weight, n.bias, 1e-5) for t, n in ((q, block.attn.q_norm), (k, block.attn.k_norm))
        )
        q, k = rotate(q, rope), rotate(k, rope)
        heads.append((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v)
    x = x + block.ls1.gamma * F.linear(torch.cat(heads, -1), block.attn.proj.weight, block.attn.proj.bias)
    y = F.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias, 1e-6)
    y = F.gelu(F.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + block.ls2.gamma * F.linear(y, block.mlp.fc2.weight, block.mlp.fc2.bias)


def make() -> Block:
    block = Block(16, 2, 64, eps=1e-6, qk_norm=1e-5)
    randomize(block, seed=3)
    return block


@float64()
@torch.no_grad()
def test_a_block_is_the_transformer_block_written_out() -> None:
    block, x = make(), torch.randn(2, 6, 16)
    ours = block(x, rope_table(grid_positions((2, 3)), 8))
    assert_rounded(ours, plain(block, x))


def test_keys_are_those_of_published_checkpoints() -> None:
    assert set(make().state_dict()) == {
        f"{name}.{kind}"
        for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "attn.q_norm", "attn.k_norm", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    } | {"ls1.gamma", "ls2.gamma"}


@torch.no_grad()
@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_products_in_bfloat16_leave_norms_and_stream_alone(residual: torch.dtype) -> None:
    block, x = make(), torch.randn(2, 6, 16)
    rope = rope_table(grid_positions((2, 3)), 8)
    wanted = block(x, rope)
    cast_products(block, torch.bfloat16)
    assert block.attn.qkv.weight.dtype == block.mlp.fc2.bias.dtype == torch.bfloat16
    assert block.norm1.weight.dtype == block.ls1.gamma.dtype == block.attn.q_norm.weight.dtype == torch.float32
    found = block(x.to(residual), rope)
    assert found.dtype == residual
    assert F.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.999


def test_random_weights_are_the_seeds_own() -> None:
    blocks = [Block(16, 2, 64, eps=1e-6) for _ in range(3)]
    before = torch.get_rng_state()
    first, again, other = (randomize(block, seed).state_dict() for block, seed in zip(blocks, (1, 1, 2), strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_a_small_stream_is_written_to_by_small_branches() -> None:
    large, small = (randomize(make(), stream=scale).state_dict() for scale in (1.0, 0.01))
    for key in ("attn.proj.weight", "mlp.fc2.bias"):
        assert_rounded(small[key], 0.01 * large[key])
    assert torch.equal(small["attn.qkv.weight"], large["attn.qkv.weight"])
