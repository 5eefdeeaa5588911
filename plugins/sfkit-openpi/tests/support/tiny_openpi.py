"""Tiny policies with random weights, and their batches: of openpi's own classes where they can be imported.

openpi is on no registry. Where it is not installed, the ``openpi`` beside this file stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import openpi
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from openpi.models.model import Observation
from openpi.models_pytorch import pi0_pytorch
from openpi.models_pytorch.preprocessing_pytorch import IMAGE_KEYS
from torch import Tensor

#: Whether it is the stand-in that was imported.
STANDIN = hasattr(openpi, "STANDIN")
#: The cameras, in the order of their tokens.
CAMERAS: tuple[str, ...] = IMAGE_KEYS
#: Side of a view.
SIZE = 56 if STANDIN else 224
_WORDS = 64


def tiny_openpi(*, pi05: bool = False, dtype: str = "float32", pytorch_compile_mode: str | None = None) -> Any:
    """``PI0Pytorch`` of few blocks and channels: views of ``SIZE`` pixels, actions of 4 numbers, chunks of 3."""
    if STANDIN:
        from openpi.models.pi0_config import Pi0Config

        sizes = Pi0Config(pi05=pi05, dtype=dtype, pytorch_compile_mode=pytorch_compile_mode)
        return pi0_pytorch.PI0Pytorch(sizes)
    config: Any = SimpleNamespace(
        pi05=pi05, paligemma_variant="dummy", action_expert_variant="dummy", dtype=dtype, action_dim=4,
        action_horizon=3, max_token_len=5, pytorch_compile_mode=pytorch_compile_mode,
    )  # fmt: skip
    with _small_parts():
        return pi0_pytorch.PI0Pytorch(config)


def tiny_observation(
    b: int = 2,
    *,
    size: int = SIZE,
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
        source: Height and width of the images before they were letterboxed, as the pipeline's ``ResizeImages`` does
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
        images[camera] = _image(b, size, source or (size, size), g) if there else torch.full((b, 3, size, size), -1.0)
        masks[camera] = torch.full((b,), there)
    mask = torch.ones(b, prompt, dtype=torch.bool)
    mask[:, -1] = False
    observation = Observation(
        images, masks, torch.randn(b, state_dim, generator=g), torch.randint(0, 32, (b, prompt), generator=g), mask
    )
    return observation, torch.randn(b, 3, state_dim, generator=g)


def _image(b: int, size: int, source: tuple[int, int], g: torch.Generator) -> Tensor:
    """Blotches of random color, none of them black, with black bars where the source is not square."""
    ratio = max(source) / size
    height, width = int(source[0] / ratio), int(source[1] / ratio)
    coarse = 0.1 + 0.8 * torch.rand(b, 3, 8, 8, generator=g)
    image = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False) * 2 - 1
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top), value=-1.0)


@contextmanager
def _small_parts() -> Iterator[None]:
    """Shrink what "dummy" leaves at full size: the vision tower, its projection, and the vocabulary.

    The projection's width is fixed at 2048 upstream, so that "dummy" cannot run as it is.
    """
    from openpi.models_pytorch import gemma_pytorch as module

    def paligemma(cls: Callable[..., Any]) -> Callable[..., Any]:
        def build(config: Any) -> Any:
            vision, text = config.vision_config, config.text_config
            vision.hidden_size, vision.intermediate_size = 32, 64
            vision.num_hidden_layers, vision.num_attention_heads = 1, 2
            vision.projection_dim, text.vocab_size = text.hidden_size, _WORDS
            return cls(config=config)

        return build

    def gemma(cls: Callable[..., Any]) -> Callable[..., Any]:
        def build(config: Any) -> Any:
            config.vocab_size = _WORDS
            return cls(config=config)

        return build

    precision = torch.get_float32_matmul_precision()  # which the policy's constructor changes for the whole process
    whole, expert = module.PaliGemmaForConditionalGeneration, module.GemmaForCausalLM
    with (
        mock.patch.object(module, "PaliGemmaForConditionalGeneration", paligemma(whole)),
        mock.patch.object(module, "GemmaForCausalLM", gemma(expert)),
    ):
        yield
    torch.set_float32_matmul_precision(precision)
