"""openpi's files over those of transformers: missing and stale ones are recognized by their behavior."""

from __future__ import annotations

import pytest
from sfkit_openpi import OpenPIAdapter

from sfkit.errors import AdapterError


def test_transformers_own_gemma_is_recognized_by_behavior(standin, monkeypatch) -> None:
    from openpi.models_pytorch import gemma_pytorch as gemma

    policy = standin.build()
    monkeypatch.setattr(gemma.GemmaRMSNorm, "forward", lambda self, x: x)
    with pytest.raises(AdapterError, match=r"takes no condition.*\n.*link-mode=copy"):
        OpenPIAdapter(policy)


def test_a_stale_paligemma_file_is_recognized_by_behavior(standin, monkeypatch) -> None:
    from openpi.models_pytorch import gemma_pytorch as gemma

    policy = standin.build()
    patched = gemma.PaliGemmaModel.get_image_features
    stock = lambda self, pixels: patched(self, pixels) / self.config.text_config.hidden_size**0.5  # noqa: E731
    monkeypatch.setattr(gemma.PaliGemmaModel, "get_image_features", stock)
    with pytest.raises(AdapterError, match=r"multiplies the tokens of images by 0\.177"):
        OpenPIAdapter(policy)
