"""A tiny vision-language model for SmolVLA, as a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfkit_lerobot.testing.tokenizer import IMAGE_TOKENS, TEXTS, byte_tokenizer


def tiny_smolvlm(
    directory: str | Path,
    *,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    vision_heads: int = 2,
    image_size: int = 64,
    patch_size: int = 8,
    scale_factor: int = 2,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    texts: Sequence[str] = TEXTS,
) -> Path:
    """Write a local SmolVLM "repository": configuration, tokenizer and processor, without weights.

    An image becomes ``image_size / patch_size / scale_factor`` squared tokens: 4 x 4 by default.

    Args:
        directory: Where to write; made if missing.
        vision_hidden: Width of the vision tower.
        vision_layers: Its blocks.
        vision_heads: Its attention heads.
        image_size: Side of the images in pixels.
        patch_size: Side of a vision patch in pixels.
        scale_factor: Pixel shuffle: this many patches squared make one token.
        hidden: Width of the language model.
        layers: Its blocks.
        heads: Its attention heads; each is ``hidden / heads`` wide.
        kv_heads: Its key and value heads.
        texts: What the byte-level tokenizer is trained on; any other text is encoded too, in more tokens.

    Returns:
        ``directory``, absolute.
    """
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer(texts)
    special_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["image_token"]),
        scale_factor=scale_factor,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        vision_config={
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": hidden // heads,
            "max_position_embeddings": 512,
            **special_ids,
        },
    ).save_pretrained(directory)
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(), tokenizer=tokenizer, video_processor=SmolVLMVideoProcessor()
    ).save_pretrained(directory)
    return directory
