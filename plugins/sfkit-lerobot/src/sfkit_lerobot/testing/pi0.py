"""Tiny pi0, pi0.5 and pi0-FAST: one family, whose sizes are hard-coded in LeRobot."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from sfkit_lerobot.testing.fast import VOCABULARY, offline_tokenizers
from sfkit_lerobot.testing.settings import CAMERAS, Processors, common_settings

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

_CLASSES = {"pi0": "PI0", "pi05": "PI05", "pi0_fast": "PI0Fast"}


@contextmanager
def tiny_pi0_sizes(
    *,
    hidden: int = 64,
    expert_hidden: int = 32,
    layers: int = 4,
    head_dim: int = 16,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    vision_heads: int = 2,
    patch_size: int = 14,
    image_size: int = 56,
) -> Iterator[None]:
    """Within the block, pi0, pi0.5 and pi0-FAST are built tiny; ``from_pretrained`` of a tiny one needs it again.

    A few names of LeRobot's modules of each are replaced, for the whole process: not for use while another thread
    builds a real one. The number of attention heads stays 8, which the forward of pi0 and pi0.5 takes for granted.
    ``image_size`` is pi0-FAST's alone, which has no option for it; the others take their ``image_resolution``.
    """
    vision = {
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": vision_heads,
        "patch_size": patch_size,
    }
    with ExitStack() as stack:
        for kind in _CLASSES:
            module = _module(kind, "modeling")
            widths = {"gemma_2b": hidden, "gemma_300m": expert_hidden}
            fixed = {"image_size": image_size} if kind == "pi0_fast" else {}
            replacements = _shrunk(module, widths, layers, head_dim, vision | fixed)
            for name, replacement in replacements.items():
                stack.enter_context(mock.patch.object(module, name, replacement))
        stack.enter_context(offline_tokenizers(_module("pi0_fast", "modeling")))
        yield


def tiny_pi0(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 56, 56),
    sizes: Mapping[str, int] | None = None,
    **overrides: object,
) -> PreTrainedPolicy:
    """A ``PI0Policy`` with 56-pixel images (4 x 4 tokens each), on the CPU, in training mode.

    Args:
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        sizes: Arguments of :func:`tiny_pi0_sizes`.
        overrides: Further fields of ``PI0Config``, such as ``dtype="bfloat16"``.
    """
    common = common_settings(cameras, state_dim, action_dim, chunk_size, image_shape)
    return _build("pi0", {**common, **overrides}, sizes)


def tiny_pi05(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 56, 56),
    sizes: Mapping[str, int] | None = None,
    **overrides: object,
) -> PreTrainedPolicy:
    """A ``PI05Policy`` of the same sizes; the arguments are those of :func:`tiny_pi0`."""
    common = common_settings(cameras, state_dim, action_dim, chunk_size, image_shape)
    return _build("pi05", {**common, **overrides}, sizes)


def tiny_pi0_fast(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 56, 56),
    sizes: Mapping[str, int] | None = None,
    **overrides: object,
) -> PreTrainedPolicy:
    """A ``PI0FastPolicy`` of the same sizes; the arguments are those of :func:`tiny_pi0`.

    It predicts actions as words. Those of a model with random weights are nonsense, so they are not checked.
    """
    common = common_settings(cameras, state_dim, action_dim, chunk_size, image_shape)
    words = {
        "max_action_tokens": 32,
        "max_decoding_steps": 4,
        "fast_skip_tokens": 8,
        "validate_action_token_prefix": False,
    }
    return _build("pi0_fast", {**common, **words, **overrides}, sizes)


def tiny_pi0_processors(policy: PreTrainedPolicy, stats: Mapping[str, object], texts: Sequence[str]) -> Processors:
    """LeRobot's own processors of a pi0, pi0.5 or pi0-FAST policy, with tokenizers that are made here.

    They would download PaliGemma's, whose 257,000 tokens a tiny policy has no embeddings for, and pi0-FAST's.

    Args:
        policy: A tiny policy.
        stats: The dataset's statistics, as LeRobot takes them: pi0 asks for mean and std, pi0.5 for q01 and q99.
        texts: What the tokenizer is trained on.

    Returns:
        Preprocessor and postprocessor.
    """
    from functools import partial

    from sfkit_lerobot.testing.tokenizer import byte_tokenizer

    kind = policy.config.type
    module = _module(kind, "processor")
    # pi0.5 writes the state into the prompt, as numbers from 0 to 255.
    numbers = " ".join(str(number) for number in range(256))
    tokenizer = byte_tokenizer([*texts, f"Task: , State: {numbers};\nAction: "])
    step = partial(module.TokenizerProcessorStep, tokenizer=tokenizer)
    tokens = importlib.import_module("lerobot.processor.tokenizer_processor")
    with mock.patch.object(module, "TokenizerProcessorStep", step), offline_tokenizers(tokens):
        processors: Processors = getattr(module, f"make_{kind}_pre_post_processors")(policy.config, stats)
    return processors


def _build(kind: str, settings: Mapping[str, object], sizes: Mapping[str, int] | None) -> PreTrainedPolicy:
    config = getattr(_module(kind, "configuration"), f"{_CLASSES[kind]}Config")
    policy = getattr(_module(kind, "modeling"), f"{_CLASSES[kind]}Policy")
    with tiny_pi0_sizes(**(sizes or {})):
        return policy(config(**{"image_resolution": (56, 56), **settings})).train()


def _module(kind: str, part: str) -> Any:
    return importlib.import_module(f"lerobot.policies.{kind}.{part}_{kind}")


def _shrunk(
    module: ModuleType, widths: Mapping[str, int], layers: int, head_dim: int, vision: Mapping[str, int]
) -> dict[str, Callable[..., Any]]:
    """What takes the place of names of a ``modeling_`` module."""
    original: Any = module
    gemma, paligemma = original.GemmaConfig, original.PaliGemmaForConditionalGenerationWithPiGemma
    expert = getattr(original, "PiGemmaForCausalLM", None)  # pi0-FAST has none: its words are the language model's

    def sizes(variant: str) -> Any:
        width = widths[variant]
        return gemma(width=width, depth=layers, mlp_dim=2 * width, num_heads=8, num_kv_heads=1, head_dim=head_dim)

    def shrunk_paligemma(config: Any) -> Any:
        text = config.text_config
        text.vocab_size, text.pad_token_id = VOCABULARY, 0
        config._vocab_size = VOCABULARY
        config.image_token_index = config.image_token_id = VOCABULARY - 1
        for name, value in vision.items():
            setattr(config.vision_config, name, value)
        config.vision_config.projection_dim = config.projection_dim = text.hidden_size
        return paligemma(config=config)

    replacements: dict[str, Callable[..., Any]] = {
        "get_gemma_config": sizes,
        "PaliGemmaForConditionalGenerationWithPiGemma": shrunk_paligemma,
    }
    if expert is None:
        return replacements

    def shrunk_expert(config: Any) -> Any:
        config.vocab_size, config.pad_token_id = VOCABULARY, 0
        return expert(config=config)

    return {**replacements, "PiGemmaForCausalLM": shrunk_expert}
