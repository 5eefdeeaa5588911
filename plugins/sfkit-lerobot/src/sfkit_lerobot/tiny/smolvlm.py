"""A tiny vision-language model for SmolVLA, as a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXTS = ("pick up the red cube and place it in the bowl\n", "push the block to the target\n")

_SPECIAL = {
    "unk_token": "<|endoftext|>",
    "bos_token": "<|im_start|>",
    "pad_token": "<|im_end|>",
    "eos_token": "<end_of_utterance>",
}
_IMAGE_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}


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

    A picture becomes ``image_size / patch_size / scale_factor`` squared tokens: 4 x 4 by default.

    Args:
        directory: Where to write; made if missing.
        vision_hidden: Width of the vision tower.
        vision_layers: Its blocks.
        vision_heads: Its attention heads.
        image_size: Side of the pictures in pixels.
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
    tokenizer = _byte_tokenizer(texts)
    special_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE_TOKENS["image_token"]),
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


def _byte_tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([*_SPECIAL.values(), *_IMAGE_TOKENS.values()]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=_IMAGE_TOKENS, model_max_length=512, **_SPECIAL
    )
