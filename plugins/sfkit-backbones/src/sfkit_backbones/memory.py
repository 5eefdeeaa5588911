"""Estimates of the memory of a network, in bytes."""

from __future__ import annotations

from torch import nn


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers, also of a network on the meta device."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def block_bytes(tokens: int, dim: int, hidden: int, *, product: int, residual: int = 4) -> int:
    """Peak bytes of a pre-norm transformer block beside its input: the larger of attention and MLP.

    Args:
        tokens: Number of tokens in the whole batch.
        dim: Width.
        hidden: Width inside the MLP.
        product: Bytes of an element in matrix products.
        residual: Bytes of an element of the stream.
    """
    norm = dim * (4 + (product if product < 4 else 0))
    attention = 3 * dim * product + 2 * dim * 4 * 3
    mlp = 2 * hidden * product
    return tokens * (2 * dim * residual + norm + max(attention, mlp))
