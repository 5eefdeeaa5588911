"""A tiny Qwen3-VL, as a local folder: what GR00T N1.7 and VLA-JEPA are built around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfkit_lerobot.testing.tokenizer import TEXTS, byte_tokenizer

_IMAGE_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
#: Images in front of the text, as Qwen's own template has them.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen3vl(
    directory: str | Path, *, hidden: int = 64, layers: int = 4, patch_size: int = 8, texts: Sequence[str] = TEXTS
) -> Path:
    """Write a local Qwen3-VL "repository": configuration, random weights, tokenizer and processor.

    An image becomes a token for each ``2 * patch_size`` pixels squared, and is not resized where its sides are
    multiples of that.

    Args:
        directory: Where to write; made if missing.
        hidden: Width of the language model.
        layers: Its blocks.
        patch_size: Side of a vision patch in pixels.
        texts: What the byte-level tokenizer is trained on; any other text is encoded too, in more tokens.

    Returns:
        ``directory``, absolute.
    """
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    directory = Path(directory).absolute()
    tokenizer = byte_tokenizer(texts, _IMAGE_TOKENS)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _IMAGE_TOKENS.items()}
    config = Qwen3VLConfig(
        **ids,
        tie_word_embeddings=True,
        text_config={
            "vocab_size": 512,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 16,
            "num_key_value_heads": hidden // 32,
            "head_dim": 16,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(directory)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": patch_size}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**half, size={"shortest_edge": 256, "longest_edge": 1 << 22}),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**half),
        chat_template=_TEMPLATE,
    ).save_pretrained(directory)
    return directory
