"""Policies of many shapes, each with a batch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit.testing.tiny import Block, TinyPolicy


class Patches(nn.Module):
    """Images ``(b, v, 3, h, w)`` to tokens, a row of blocks, an action from the last token.

    Args:
        blocks: The blocks.
        classes: Tokens without a patch in front of each view's.
    """

    def __init__(self, blocks: nn.Module, classes: int = 0, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 8, 8)
        self.classes = nn.Parameter(torch.randn(classes, dim))
        self.blocks = blocks
        self.head = nn.Linear(dim, 3)

    def tokens(self, images: Tensor) -> Tensor:
        rows = []
        for view in images.unbind(1):
            tokens = self.embed(view * 2 - 1).flatten(2).transpose(1, 2)
            mixed = self.classes + 0.1 * tokens.mean(1, keepdim=True)
            rows.append(torch.cat([mixed, tokens], 1))
        return torch.cat(rows, 1)

    def run(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden[:, -1])

    def forward(self, images: Tensor, action: Tensor) -> Tensor:
        return (self.run(self.tokens(images)) - action).square().mean()


class Attending(Block):
    """A block that sees everything."""

    def forward(self, hidden: Tensor, attend: Tensor | None = None) -> Tensor:
        everything = torch.ones(1, hidden.shape[1], hidden.shape[1], dtype=torch.bool)
        return super().forward(hidden, everything)


class Cameras(nn.Module):
    """An image for each camera under a key with dots, of another order than the tokens; losses in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyPolicy()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        views = [batch["observation.images.left"], batch["observation.images.wrist"]]
        loss, _ = self.inner({**batch, "images": torch.stack(views, 1)})
        return {"losses": {"flow": loss, "total": 2 * loss}, "aux": [0.0]}


class Examples(nn.Module):
    """The way of starVLA: a list of examples with images, and a dictionary with ``action_loss``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyPolicy()

    def forward(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [[torch.as_tensor(image) for image in example["image"]] for example in examples]
        images = torch.stack([torch.stack(row) for row in rows]).permute(0, 1, 4, 2, 3) / 255
        actions = torch.stack([torch.tensor(example["action"]) for example in examples])
        batch = {"images": images, "state": torch.zeros(len(examples), 3), "action": actions}
        return {"action_loss": self.inner(batch)[0]}


def patches(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    dim, count = 16, 3
    layers = {
        "attending": lambda: Attending(dim),
        "post-norm": lambda: nn.TransformerEncoderLayer(dim, 2, 32, dropout=0.0, batch_first=True),
        "class tokens": lambda: Attending(dim),
    }
    blocks = nn.Sequential(*(layers[kind]() for _ in range(count)))
    model = Patches(blocks, classes=1 if kind == "class tokens" else 0)
    return model, {"images": torch.rand(2, 2, 3, 24, 32), "action": torch.zeros(2, 3)}


@pytest.fixture
def tiny() -> Callable[..., TinyPolicy]:
    """Make a tiny policy whose weights depend on the seed alone."""

    def make(seed: int = 0, **options: Any) -> TinyPolicy:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TinyPolicy(**options)

    return make


@pytest.fixture
def make_patches() -> Callable[[str], tuple[nn.Module, dict[str, Tensor]]]:
    """A policy of a kind of blocks, and its batch."""
    torch.manual_seed(0)
    return patches


@pytest.fixture
def cases() -> SimpleNamespace:
    """Classes of policies."""
    torch.manual_seed(0)
    return SimpleNamespace(Patches=Patches, Attending=Attending, Cameras=Cameras, Examples=Examples)
