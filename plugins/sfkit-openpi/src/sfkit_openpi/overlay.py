"""Check that openpi's replacements of transformers' files are installed, by their behavior."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sfkit.errors import AdapterError

_REMEDY = (
    "Copy openpi's src/openpi/models_pytorch/transformers_replace/* over the installed transformers 4.53.2, in an "
    "environment that uv installed with --link-mode=copy (else the copy changes every environment that shares uv's "
    "cache)."
)


def refuse_stale_overlay(paligemma: Any) -> None:
    """Check two functions that openpi's files of Gemma and PaliGemma change.

    openpi itself checks only the version of transformers and one file. With incomplete or overwritten replacements it
    runs, and scales image tokens by the square root of the width.

    Raises:
        AdapterError: The replaced files are missing or incomplete.
    """
    norm = paligemma.language_model.layers[0].input_layernorm
    weight = next(norm.parameters())
    try:
        with torch.no_grad():
            returned = norm(torch.zeros(1, 1, weight.shape[0], device=weight.device, dtype=weight.dtype), cond=None)
    except TypeError:
        returned = None
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise AdapterError(
            f"{type(norm).__name__} of the language model takes no condition: transformers' own Gemma is installed, "
            "and not openpi's.",
            _REMEDY,
        )
    scale = _image_scale(paligemma.model)
    if scale is not None and abs(scale - 1) > 1e-3:
        raise AdapterError(
            f"PaliGemma multiplies the tokens of images by {scale:.3g}: transformers' own file is installed, and not "
            "openpi's, which leaves them as they are.",
            _REMEDY,
        )


def _image_scale(model: Any) -> float | None:
    """The factor of ``get_image_features`` on the projected tokens; None if it cannot be determined.

    The method runs on a stand-in for the model whose projector is the identity, so that no network runs.
    """

    def tower(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.ones(1, 1, 1))

    double = SimpleNamespace(config=model.config, vision_tower=tower, multi_modal_projector=lambda tokens: tokens)
    try:
        found = type(model).get_image_features(double, torch.zeros(1, 3, 1, 1))
    except Exception:  # another version of transformers needs more of the model than the stand-in has
        return None
    return float(found.mean()) if isinstance(found, Tensor) else None
