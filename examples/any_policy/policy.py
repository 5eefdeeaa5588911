"""A policy that sfkit has never heard of, for docs/any-policy.md: tiny, but with what a real one has.

Images of two cameras become tokens, which take the place of image tokens in a padded instruction. A decoder reads
both, and the action is read from a last token of its own. ``forward`` returns a dictionary with the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

IMAGE, PAD = 7, 0


class Layer(nn.Module):
    """A pre-norm decoder block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, padding: Tensor) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)[0]
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class MyPolicy(nn.Module):
    """Two cameras of 32 x 48 pixels, an instruction, and an action of 4 numbers."""

    def __init__(self, width: int = 32, num_layers: int = 6) -> None:
        super().__init__()
        self.vision = nn.Conv2d(3, width, 8, 8)
        self.words = nn.Embedding(50, width)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(Layer(width) for _ in range(num_layers))
        self.decoder.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, width))
        self.head = nn.Linear(width, 4)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        b = len(batch["input_ids"])
        seen = self.vision(batch["pixel_values"].flatten(0, 1)).flatten(2).transpose(1, 2)
        here = (batch["input_ids"] == IMAGE).unsqueeze(-1)
        hidden = self.words(batch["input_ids"]).masked_scatter(here, seen)
        hidden = torch.cat([hidden, self.query.expand(b, 1, -1)], 1)
        padding = F.pad(batch["input_ids"] == PAD, (0, 1))
        for layer in self.decoder.layers:
            hidden = layer(hidden, padding)
        action = self.head(self.decoder.norm(hidden)[:, -1])
        return {"action_loss": F.mse_loss(action, batch["action"])}


def make_batch(samples: int = 2) -> dict[str, Tensor]:
    """A batch as the training loop gives it: images in [-1, 1], instructions padded on the left."""
    texts = [[11, 12] + [IMAGE] * 48 + [13] * (3 + index) for index in range(samples)]
    longest = max(map(len, texts))
    return {
        "pixel_values": torch.rand(samples, 2, 3, 32, 48) * 2 - 1,
        "input_ids": torch.tensor([[PAD] * (longest - len(text)) + text for text in texts]),
        "action": torch.randn(samples, 4),
    }


def make() -> tuple[nn.Module, dict[str, Tensor]]:
    """What `sfkit inspect` calls: the policy, and one batch of its training loop."""
    torch.manual_seed(0)
    return MyPolicy(), make_batch()
