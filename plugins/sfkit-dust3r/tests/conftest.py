"""A plain implementation of the backbone, from its description alone, and small teachers with their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sfkit_backbones.randomize import randomize
from torch import Tensor

SHARED = Path(__file__).parents[4] / "shared"


class Reference:
    """One pair of images at a time, one head at a time, in float64.

    Args:
        state: Checkpoint.
        enc_heads: Heads of the encoder.
        dec_heads: Heads of the decoder.
    """

    def __init__(self, state: Mapping[str, Tensor], enc_heads: int, dec_heads: int) -> None:
        self.state = {key: value.double() for key, value in state.items()}
        self.enc_heads, self.dec_heads = enc_heads, dec_heads

    def num_blocks(self, stack: str) -> int:
        return len({key.split(".")[1] for key in self.state if key.startswith(f"{stack}.")})

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(3, h, w)`` to the stream after each block, the last one normed, and the places of the tokens."""
        weight, bias = self.state["patch_embed.proj.weight"], self.state["patch_embed.proj.bias"]
        patch = weight.shape[-1]
        rows, columns = image.shape[1] // patch, image.shape[2] // patch
        tokens, places = [], []
        for row in range(rows):
            for column in range(columns):
                piece = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].double()
                tokens.append((weight * piece).sum((1, 2, 3)) + bias)
                places.append((row, column))
        x, found = torch.stack(tokens), []
        for i in range(self.num_blocks("enc_blocks")):
            name = f"enc_blocks.{i}"
            x = x + self.self_attention(f"{name}.attn", self.norm(f"{name}.norm1", x), places, self.enc_heads)
            x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))
            found.append(x)
        found[-1] = self.norm("enc_norm", x)
        self.places = places
        return found

    def pair(self, one: Tensor, two: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of both views: the encoder's, then each layer's of the decoder, the last one normed."""
        encoded, places = [], []
        for image in (one, two):
            encoded.append(self.encode(image)[-1])
            places.append(self.places)
        streams = [self.linear("decoder_embed", x) for x in encoded]
        found: tuple[list[Tensor], list[Tensor]] = ([encoded[0]], [encoded[1]])
        stacks = ("dec_blocks", "dec_blocks2" if self.num_blocks("dec_blocks2") else "dec_blocks")
        for i in range(self.num_blocks("dec_blocks")):
            streams = [
                self.layer(f"{stacks[side]}.{i}", streams[side], streams[1 - side], places[side], places[1 - side])
                for side in (0, 1)
            ]
            for side in (0, 1):
                found[side].append(streams[side])
        for side in (0, 1):
            found[side][-1] = self.norm("dec_norm", streams[side])
        return found

    def layer(self, name: str, x: Tensor, memory: Tensor, places: Any, memory_places: Any) -> Tensor:
        x = x + self.self_attention(f"{name}.attn", self.norm(f"{name}.norm1", x), places, self.dec_heads)
        query, memory = self.norm(f"{name}.norm2", x), self.norm(f"{name}.norm_y", memory)
        cross = f"{name}.cross_attn"
        q, k, v = self.linear(f"{cross}.projq", query), *(self.linear(f"{cross}.proj{c}", memory) for c in "kv")
        x = x + self.linear(f"{cross}.proj", self.attend(q, k, v, (places, memory_places), self.dec_heads))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm3", x))

    def self_attention(self, name: str, x: Tensor, places: Any, heads: int) -> Tensor:
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, -1)
        return self.linear(f"{name}.proj", self.attend(q, k, v, (places, places), heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: tuple[Any, Any], heads: int) -> Tensor:
        outputs = []
        for q_head, k_head, v_head in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = turn(q_head, places[0]) @ turn(k_head, places[1]).T / math.sqrt(q_head.shape[-1])
            outputs.append(scores.softmax(-1) @ v_head)
        return torch.cat(outputs, -1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.fc1", x)
        return self.linear(f"{name}.fc2", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


def turn(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Rotate ``(n, d)``: the first half by the row, the second by the column, pairs ``j`` and ``j + d/4``."""
    quarter = x.shape[-1] // 4
    places_of = torch.tensor(places, dtype=torch.float64)
    pieces = []
    for axis in (0, 1):
        angles = places_of[:, axis, None] * 100.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        a, b = x[:, 2 * axis * quarter :][:, :quarter], x[:, (2 * axis + 1) * quarter :][:, :quarter]
        pieces += [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]
    return torch.cat(pieces, -1)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("recorded outputs of the official classes are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Any]:
    """``make_backbone(seed=0, **sizes)``: a small backbone with random weights."""
    from sfkit_dust3r.backbone import PairBackbone
    from sfkit_dust3r.config import TINY

    def make(seed: int = 0, **sizes: Any) -> Any:
        return randomize(PairBackbone(TINY.model_copy(update=sizes)), seed).eval()

    return make


@pytest.fixture(scope="session")
def reference_of() -> Callable[[Any], Reference]:
    """The plain implementation with a backbone's weights."""

    def of(backbone: Any) -> Reference:
        return Reference(backbone.state_dict(), backbone.config.enc_heads, backbone.config.dec_heads)

    return of


@pytest.fixture
def checkpoint(make_backbone: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """``checkpoint(drop=..., add=..., **sizes)``: a file as the released ones, with heads and a mask token."""

    def write(
        drop: Callable[[str], bool] = lambda key: False, add: Mapping[str, Tensor] | None = None, **sizes: Any
    ) -> Path:
        state = {key: value.contiguous() for key, value in make_backbone(**sizes).state_dict().items() if not drop(key)}
        heads = {
            f"downstream_head{i}.{name}": torch.zeros(2)
            for i in (1, 2)
            for name in ("proj.weight", "dpt.scratch.layer1_rn.weight", "dpt.scratch.layer_rn.1.weight")
        }
        path = tmp_path / "model.safetensors"
        save_file({**state, **heads, "mask_token": torch.zeros(1, 1, 24), **(add or {})}, path)
        return path

    return write
