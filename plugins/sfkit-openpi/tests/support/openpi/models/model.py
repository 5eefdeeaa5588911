"""What a policy's forward is given. Upstream: models/model.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Observation:
    """An object and not a mapping.

    Attributes:
        images: ``(b, 3, h, w)`` or ``(b, h, w, 3)`` in [-1, 1] for each camera; other entries are ignored.
        image_masks: ``(b,)`` bool for each camera; a camera that is not named here counts as present.
        state: ``(b, d)``.
        tokenized_prompt: ``(b, l)`` long.
        tokenized_prompt_mask: ``(b, l)`` bool.
        token_ar_mask: Of the autoregressive model alone.
        token_loss_mask: Unused by the PyTorch classes.
    """

    images: dict[str, Tensor]
    image_masks: dict[str, Tensor]
    state: Tensor
    tokenized_prompt: Tensor
    tokenized_prompt_mask: Tensor
    token_ar_mask: Tensor | None = None
    token_loss_mask: Tensor | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Observation:
        """As the data transforms name the parts; ``image`` is float here."""
        return cls(
            data["image"], data["image_mask"], data["state"], data["tokenized_prompt"], data["tokenized_prompt_mask"]
        )
