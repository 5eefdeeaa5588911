"""What pi0-FAST reads and writes its words with, made here instead of downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from sfkit_lerobot.testing.tokenizer import TEXTS, byte_tokenizer

#: Tokens of the tiny language model, and of an action.
VOCABULARY = 512
_WORDS = 192


@contextmanager
def offline_tokenizers(module: ModuleType) -> Iterator[None]:
    """Within the block, ``AutoProcessor`` and ``AutoTokenizer`` of a module give small ones of actions and of text."""
    made = {"AutoProcessor": action_words, "AutoTokenizer": _text_words}
    with ExitStack() as stack:
        for name, make in made.items():
            stand_in = SimpleNamespace(from_pretrained=lambda *_, make=make, **__: make())
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield


def _text_words() -> Any:
    tokenizer = byte_tokenizer([*TEXTS, "Action: |"])
    # As in PaliGemma's there is a token for whatever the language model says.
    tokenizer.add_tokens([f"<unused{index}>" for index in range(len(tokenizer), VOCABULARY)])
    return tokenizer


def action_words() -> Any:
    """LeRobot's own FAST tokenizer of actions, fitted to smooth curves of four joints over eight steps."""
    import numpy as np
    from lerobot.policies.molmoact2.molmoact2_hf_model.action_tokenizer import UniversalActionProcessor

    steps, phases = np.linspace(0.0, 3.0, 8), np.arange(16)[:, None, None] + np.arange(4)
    curves = np.sin(steps[:, None] + phases)
    return UniversalActionProcessor.fit(list(curves), vocab_size=_WORDS, time_horizon=8, action_dim=4)
