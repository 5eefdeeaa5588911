"""A tiny pi0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sfkit_lerobot.tiny.settings import CAMERAS, common_settings

_PI0_VOCABULARY = 512


@contextmanager
def tiny_pi0_sizes(
    *,
    hidden: int = 64,
    expert_hidden: int = 32,
    layers: int = 4,
    head_dim: int = 16,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    patch_size: int = 14,
) -> Iterator[None]:
    """Within the block, pi0 policies are built tiny; ``PI0Policy.from_pretrained`` of a tiny one needs it again.

    Three names of ``lerobot.policies.pi0.modeling_pi0`` are replaced, for the whole process: not for use while another
    thread builds a real pi0. The number of attention heads stays 8, which pi0's forward takes for granted.
    """
    from lerobot.policies.pi0 import modeling_pi0

    def sizes(variant: str) -> Any:
        width = {"gemma_2b": hidden, "gemma_300m": expert_hidden}[variant]
        return modeling_pi0.GemmaConfig(
            width=width, depth=layers, mlp_dim=2 * width, num_heads=8, num_kv_heads=1, head_dim=head_dim
        )

    def shrunk_paligemma(config: Any) -> Any:
        text, vision = config.text_config, config.vision_config
        text.vocab_size, text.pad_token_id = _PI0_VOCABULARY, 0
        config._vocab_size = _PI0_VOCABULARY
        config.image_token_index = config.image_token_id = _PI0_VOCABULARY - 1
        vision.hidden_size, vision.intermediate_size = vision_hidden, 2 * vision_hidden
        vision.num_hidden_layers, vision.num_attention_heads = vision_layers, 2
        vision.patch_size = patch_size
        vision.projection_dim = config.projection_dim = text.hidden_size
        return build_paligemma(config=config)

    def shrunk_expert(config: Any) -> Any:
        config.vocab_size, config.pad_token_id = _PI0_VOCABULARY, 0
        return build_expert(config=config)

    replacements: dict[str, Callable[..., Any]] = {
        "get_gemma_config": sizes,
        "PaliGemmaForConditionalGenerationWithPiGemma": shrunk_paligemma,
        "PiGemmaForCausalLM": shrunk_expert,
    }
    originals = {name: getattr(modeling_pi0, name) for name in replacements}
    build_paligemma = originals["PaliGemmaForConditionalGenerationWithPiGemma"]
    build_expert = originals["PiGemmaForCausalLM"]
    try:
        for name, replacement in replacements.items():
            setattr(modeling_pi0, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(modeling_pi0, name, original)


def tiny_pi0(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 56, 56),
    **overrides: Any,
) -> Any:
    """A ``PI0Policy`` with 56-pixel pictures (4 x 4 tokens each), on the CPU, in training mode.

    For other sizes, build within :func:`tiny_pi0_sizes` with LeRobot's own classes.

    Args:
        cameras: Batch keys of the pictures, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the pictures in the dataset.
        overrides: Further fields of ``PI0Config``, such as ``dtype="bfloat16"``.
    """
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy

    settings: dict[str, Any] = {
        "image_resolution": (56, 56),
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    with tiny_pi0_sizes():
        policy = PI0Policy(PI0Config(**settings))
    return policy.train()
