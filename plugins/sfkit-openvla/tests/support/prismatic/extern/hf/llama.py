"""A small Llama with the call structure of Hugging Face's, for stand-ins of policies that are built on it.

Its quirks, all of ``transformers/models/llama/modeling_llama.py``:

* A block returns a tuple (a tensor since transformers 4.54); the hidden state is its first positional argument.
* ``hidden_states[k]`` is what block ``k`` gets; the last entry, alone, is normed.
* Activation checkpointing goes through the block's ``__call__``, so that its hooks run again in backward.
* The loss is computed in float32, shifted by one token, over labels that are not -100.
* OpenVLA-OFT's fork changes one function: every token then attends to every token that is not padding, and only so with
  ``attn_implementation="sdpa"``. The version number is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE = -100


class Output(OrderedDict[str, Any]):
    """Like ``transformers.utils.ModelOutput``: a mapping whose entries are attributes too; None is no entry."""

    def __init__(self, **entries: Any) -> None:
        super().__init__({key: value for key, value in entries.items() if value is not None})
        for key, value in entries.items():
            super().__setattr__(key, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The entries, in order."""
        return tuple(self.values())


class RMSNorm(nn.Module):
    """Root mean square norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(hidden_states.dtype)


class Attention(nn.Module):
    """Self-attention, with the names that LoRA configurations look for."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.down_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(dim, heads), MLP(dim)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), attention_mask)
        return (hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)),)


class LlamaModel(nn.Module):
    """The decoder.

    Args:
        dim: Width.
        num_layers: Blocks.
        vocabulary: Tokens.
        both_ways: Attend as in OpenVLA-OFT's fork.
    """

    def __init__(self, dim: int, num_layers: int, vocabulary: int, *, both_ways: bool = False) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.checkpointing: dict[str, Any] | None = None
        self.embed_tokens = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads=2) for _ in range(num_layers))
        self.norm = RMSNorm(dim)

    def forward(
        self, *, inputs_embeds: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> Output:
        hidden, every = inputs_embeds, []
        visible = self._visible(inputs_embeds, attention_mask)
        for layer in self.layers:
            every.append(hidden)
            if self.checkpointing is not None and self.training:
                (hidden,) = checkpoint(layer.__call__, hidden, visible, **self.checkpointing)
            else:
                (hidden,) = layer(hidden, attention_mask=visible)
        hidden = self.norm(hidden)
        states = (*every, hidden) if output_hidden_states else None
        return Output(last_hidden_state=hidden, hidden_states=states)

    def _visible(self, embeddings: Tensor, attention_mask: Tensor | None) -> Tensor:
        b, n = embeddings.shape[:2]
        visible = torch.ones(b, 1, n, n, dtype=torch.bool, device=embeddings.device)
        if not self.both_ways:
            visible = visible.tril()
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None]
            # A row that sees nothing is NaN; transformers unmasks it too.
            visible = visible | ~visible.any(-1, keepdim=True)
        return visible


class LlamaForCausalLM(nn.Module):
    """The decoder and its head."""

    def __init__(self, dim: int, num_layers: int, vocabulary: int, *, both_ways: bool = False) -> None:
        super().__init__()
        self.model = LlamaModel(dim, num_layers, vocabulary, both_ways=both_ways)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        found = self.model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, output_hidden_states=output_hidden_states
        )
        logits = self.lm_head(found.last_hidden_state).float()
        loss = None
        if labels is not None:
            targets = labels[:, 1:].flatten()
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE)
        return Output(loss=loss, logits=logits, hidden_states=found.hidden_states)
