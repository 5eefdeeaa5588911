"""Queries and keys of decoders with rotary positions, for the objective that compares attention."""

from __future__ import annotations

import torch
from torch import Tensor

from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.tower import TowerPrefixAdapter

#: Longest wavelength, over 2 pi, in Gemma and in SmolVLA.
_LONGEST = 10_000.0


class RotaryPrefixAdapter(TowerPrefixAdapter):
    """A decoder whose blocks have ``self_attn`` with ``q_proj`` and ``k_proj``, and turn both by their position."""

    def _touch(self) -> None:
        super()._touch()
        for block in range(1, self.num_layers + 1):
            self.attention_heads(block)

    def attention_heads(self, block: int) -> tuple[int, int]:
        attention = self.decoder.layers[block - 1].self_attn
        return attention.q_proj.out_features // attention.head_dim, int(attention.head_dim)

    def attention_tokens(self, hidden: Tensor, block: int, views: Views) -> FeatureMap:
        """Queries and keys ``(b, v, gh, gw, c)`` from ``(b, n, d)``, see :class:`sfkit.policies.base.PolicyAdapter`.

        A token's position is its place in the sequence: missing views come last, so that nothing which is masked stands
        before a view that is there.
        """
        tokens, layer = self.visual_tokens(hidden, views), self.decoder.layers[block - 1]
        heads, width = self.attention_heads(block)
        normed = layer.input_layernorm(tokens.values)
        if isinstance(normed, tuple):
            normed = normed[0]  # pi0's norm answers with a gate beside it
        normed = normed.to(layer.self_attn.q_proj.weight.dtype)
        angles = self._angles(views, width, hidden.device)
        queries, keys = (
            turned(project(normed).float().unflatten(-1, (-1, width)), angles)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        keys = keys.repeat_interleave(heads // keys.shape[-2], -2)
        return FeatureMap(torch.cat([queries / width**0.5, keys], -2).flatten(-2), tokens.mask)

    def _angles(self, views: Views, width: int, device: torch.device) -> Tensor:
        """``(v, gh, gw, 1, width / 2)``: by what each visual token is turned."""
        layout, v = self.layout(views.size), len(views.names)
        first = torch.arange(v, device=device)[:, None] * layout.length + layout.before
        place = first + torch.arange(layout.grid[0] * layout.grid[1], device=device)
        frequencies = _LONGEST ** (torch.arange(width // 2, device=device) * (-2.0 / width))
        return place.reshape(v, *layout.grid, 1, 1) * frequencies


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of ``(..., heads, width)``: channel ``i`` with channel ``i + width / 2``, by ``angles``."""
    one, two = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
