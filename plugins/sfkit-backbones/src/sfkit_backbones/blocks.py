"""Pre-norm transformer blocks with the state dict keys of DINOv2, CroCo and their successors.

Precision: matrix products run in the dtype of their weights (see :func:`cast_products`). Norms, layer scales and rotary
embedding run in float32. The residual stream keeps the dtype of its input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit_backbones.rope import Rope, rotate


class Linear(nn.Linear):
    """A linear layer that casts its input to the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` of any dtype to ``(..., out_features)`` in the dtype of the weight."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """A layer norm in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` of any dtype to ``(..., dim)`` float32."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """One trained factor for each channel of a branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values.

    Args:
        dim: Width.
        heads: Number of heads.
        qk_norm: Epsilon of a layer norm over the queries and keys of each head; None for no norm.
    """

    def __init__(self, dim: int, heads: int, qk_norm: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.q_norm = nn.Identity() if qk_norm is None else LayerNorm(dim // heads, eps=qk_norm)
        self.k_norm = nn.Identity() if qk_norm is None else LayerNorm(dim // heads, eps=qk_norm)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """Attend over ``(b, n, dim)``; ``rope`` has a row for each of the ``n`` tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP: each reads the normed residual stream and adds its output to the stream.

    Args:
        dim: Width.
        heads: Number of heads.
        hidden: Width inside the MLP.
        eps: Epsilon of both norms.
        qk_norm: Epsilon of the norm of queries and keys; None for no norm.
        layer_scale: Scale each channel of both branches.
        mlp: Replaces the default :class:`Mlp`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        eps: float,
        qk_norm: float | None = None,
        layer_scale: bool = True,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden) if mlp is None else mlp
        self.ls1 = LayerScale(dim) if layer_scale else None
        self.ls2 = LayerScale(dim) if layer_scale else None

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """Map ``(b, n, dim)`` to the same shape and dtype."""
        x = add(x, self.attn(self.norm1(x), rope), self.ls1)
        return add(x, self.mlp(self.norm2(x)), self.ls2)


def add(x: Tensor, branch: Tensor, scale: LayerScale | None = None) -> Tensor:
    """``x + scale * branch``, all ``(b, n, dim)``; the residual stream ``x`` keeps its dtype."""
    total = x + branch if scale is None else torch.addcmul(x, branch, scale.gamma)
    return total.to(x.dtype)


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of linear and convolution layers in place; other parameters stay in float32."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.to(dtype)
