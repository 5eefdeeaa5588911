"""What the stand-in's forward is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

#: The cameras, in the order of their tokens (``IMAGE_KEYS`` in models_pytorch/preprocessing_pytorch.py).
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


@dataclass
class Observation:
    """As ``Observation`` in models/model.py: an object and not a mapping.

    Attributes:
        images: ``(b, 3, h, w)`` or ``(b, h, w, 3)`` in [-1, 1] for each camera; other entries are ignored.
        image_masks: ``(b,)`` bool for each camera; a camera that is not named here counts as present.
        state: ``(b, d)``.
        tokenized_prompt: ``(b, l)`` long.
        tokenized_prompt_mask: ``(b, l)`` bool.
        token_ar_mask: Of the autoregressive model alone.
        token_loss_mask: Likewise.
    """

    images: dict[str, Tensor]
    image_masks: dict[str, Tensor]
    state: Tensor
    tokenized_prompt: Tensor
    tokenized_prompt_mask: Tensor
    token_ar_mask: Tensor | None = None
    token_loss_mask: Tensor | None = None


def tiny_observation(
    b: int = 2,
    *,
    size: int = 56,
    source: tuple[int, int] | None = None,
    missing: Iterable[str] = (),
    state_dim: int = 4,
    prompt: int = 5,
    seed: int = 0,
) -> tuple[Observation, Tensor]:
    """An observation and the actions ``(b, 3, state_dim)`` of one batch.

    Args:
        b: Samples.
        size: Side of the view.
        source: Height and width of the pictures before they were letterboxed, as the pipeline's ``ResizeImages`` does
            with black bars; without it they are square.
        missing: Cameras that no sample has: black, and masked.
        state_dim: Size of state and action.
        prompt: Tokens of the prompt; the last one is padding.
        seed: Of everything drawn.
    """
    g = torch.Generator().manual_seed(seed)
    images, masks = {}, {}
    for camera in CAMERAS:
        there = camera not in missing
        images[camera] = _picture(b, size, source or (size, size), g) if there else torch.full((b, 3, size, size), -1.0)
        masks[camera] = torch.full((b,), there)
    mask = torch.ones(b, prompt, dtype=torch.bool)
    mask[:, -1] = False
    observation = Observation(
        images, masks, torch.randn(b, state_dim, generator=g), torch.randint(0, 32, (b, prompt), generator=g), mask
    )
    return observation, torch.randn(b, 3, state_dim, generator=g)


def _picture(b: int, size: int, source: tuple[int, int], g: torch.Generator) -> Tensor:
    """Blotches of random color, none of them black, with black bars where the source is not square."""
    ratio = max(source) / size
    height, width = int(source[0] / ratio), int(source[1] / ratio)
    coarse = 0.1 + 0.8 * torch.rand(b, 3, 8, 8, generator=g)
    picture = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False) * 2 - 1
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(picture, (left, size - width - left, top, size - height - top), value=-1.0)
