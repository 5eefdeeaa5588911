"""openpi's files over those of transformers: missing and stale ones are told by what they do."""

from __future__ import annotations

import pytest
from sfkit_openpi import OpenPIAdapter

from sfkit.errors import AdapterError
from sfkit.testing.openpi import PI0Pytorch, TinyConfig


def test_transformers_own_gemma_is_told_apart_by_what_it_does(monkeypatch) -> None:
    from sfkit.testing.openpi import gemma

    policy = PI0Pytorch(TinyConfig())
    monkeypatch.setattr(gemma.GemmaRMSNorm, "forward", lambda self, x: x)
    with pytest.raises(AdapterError, match=r"takes no condition.*\n.*link-mode=copy"):
        OpenPIAdapter(policy)


def test_a_stale_file_of_paligemma_is_told_apart_by_what_it_does(monkeypatch) -> None:
    from sfkit.testing.openpi import gemma

    policy = PI0Pytorch(TinyConfig())
    patched = gemma.PaliGemmaModel.get_image_features
    stock = lambda self, pixels: patched(self, pixels) / self.config.text_config.hidden_size**0.5  # noqa: E731
    monkeypatch.setattr(gemma.PaliGemmaModel, "get_image_features", stock)
    with pytest.raises(AdapterError, match=r"multiplies the tokens of pictures by 0\.177"):
        OpenPIAdapter(policy)
