"""A byte-level tokenizer, trained here: any text can be encoded, and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = ("pick up the red cube and place it in the bowl\n", "push the block to the target\n")
#: Tokens, at most: fewer than the tiny language models have.
VOCABULARY = 400

_SPECIAL = {
    "unk_token": "<|endoftext|>",
    "bos_token": "<|im_start|>",
    "pad_token": "<|im_end|>",
    "eos_token": "<end_of_utterance>",
}
IMAGE_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def byte_tokenizer(
    texts: Sequence[str] = TEXTS, image_tokens: Mapping[str, str] = IMAGE_TOKENS
) -> PreTrainedTokenizerFast:
    """A fast tokenizer of ``transformers``.

    Args:
        texts: What it is trained on; any other text is encoded too, in more tokens.
        image_tokens: Special tokens around images, by the names of attributes; those of SmolVLM by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([*_SPECIAL.values(), *image_tokens.values()]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=dict(image_tokens), model_max_length=512, **_SPECIAL
    )
