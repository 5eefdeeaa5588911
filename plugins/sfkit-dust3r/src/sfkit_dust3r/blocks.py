"""The decoder's block: self-attention, cross-attention to the other view, MLP."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_backbones.blocks import Attention, LayerNorm, Linear, Mlp, add
from sfkit_backbones.rope import Rope, rotate
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention from one view's tokens to another's, with rotary positions of each token's own image.

    Args:
        dim: Width.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = Linear(dim, dim)
        self.projk = Linear(dim, dim)
        self.projv = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, rope: Rope, memory_rope: Rope) -> Tensor:
        """Attend from ``(b, n, dim)`` to ``(b, m, dim)``; the tables have ``n`` and ``m`` rows."""
        q = rotate(self._split(self.projq(x)), rope)
        k = rotate(self._split(self.projk(memory)), memory_rope)
        v = self._split(self.projv(memory))
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, tokens: Tensor) -> Tensor:
        """``(b, n, dim)`` to ``(b, heads, n, head_dim)``."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and MLP: each reads the normed stream and adds its output to the stream.

    Args:
        dim: Width.
        heads: Number of heads.
        hidden: Width inside the MLP.
        eps: Epsilon of all norms.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, eps: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.norm_y = LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, memory: Tensor, rope: Rope, memory_rope: Rope) -> Tensor:
        """Map ``(b, n, dim)`` to the same shape and dtype; ``memory`` is ``(b, m, dim)`` of the other view."""
        x = add(x, self.attn(self.norm1(x), rope))
        x = add(x, self.cross_attn(self.norm2(x), self.norm_y(memory), rope, memory_rope))
        return add(x, self.mlp(self.norm3(x)))
