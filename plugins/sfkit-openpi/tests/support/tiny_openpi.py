"""A tiny policy of openpi's own classes, with random weights: for the tests, where openpi is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

_WORDS = 64


def openpi_is_here() -> bool:
    """Whether openpi's PyTorch models can be imported (openpi is on no registry, and needs Python 3.11)."""
    try:
        return importlib.util.find_spec("openpi.models_pytorch.pi0_pytorch") is not None
    except ImportError:
        return False


def tiny_openpi(*, pi05: bool = False, dtype: str = "float32", pytorch_compile_mode: str | None = None) -> Any:
    """``PI0Pytorch`` of 4 blocks and 64 channels: views of 224 pixels as ever, actions of 4 numbers, chunks of 3."""
    from openpi.models_pytorch import pi0_pytorch

    config = SimpleNamespace(
        pi05=pi05, paligemma_variant="dummy", action_expert_variant="dummy", dtype=dtype, action_dim=4,
        action_horizon=3, max_token_len=5, pytorch_compile_mode=pytorch_compile_mode,
    )  # fmt: skip
    with _small_parts():
        return pi0_pytorch.PI0Pytorch(config)


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
