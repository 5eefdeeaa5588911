"""openpi replaces files of transformers. Whether that was done, and with the right files, is seen from what they do."""

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
    """Check what openpi's files of Gemma and PaliGemma do otherwise than those of transformers.

    openpi itself asks only for the version of transformers and for one file: an overlay that is partly there, or was
    overwritten by an update, passes, and scales the images' tokens by the square root of the width.

    Raises:
        AdapterError: The replaced files are missing, or are not these.
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
    """What ``get_image_features`` multiplies the projected tokens by; None where it cannot be told.

    The method runs on an object that stands in for the model and projects nothing, so that no network runs.
    """

    def tower(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.ones(1, 1, 1))

    double = SimpleNamespace(config=model.config, vision_tower=tower, multi_modal_projector=lambda tokens: tokens)
    try:
        found = type(model).get_image_features(double, torch.zeros(1, 3, 1, 1))
    except Exception:  # another version, which needs more of the model than this
        return None
    return float(found.mean()) if isinstance(found, Tensor) else None
