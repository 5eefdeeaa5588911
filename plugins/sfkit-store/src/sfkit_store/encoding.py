"""From feature maps to what a shard holds, and back; and the small pictures that tell whether pixels are the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.views.types import FeatureMap
from sfkit_store.manifest import Dtype

#: Side of the small picture of a view.
SIDE = 8

#: What a shard holds of each layer, and in which dtype; by the dtype of the store.
PARTS: dict[Dtype, dict[str, torch.dtype]] = {
    "float32": {"values": torch.float32, "mask": torch.bool},
    "bfloat16": {"values": torch.bfloat16, "mask": torch.bool},
    "int8": {"values": torch.int8, "scale": torch.float32, "mask": torch.bool},
}
_LARGEST = 127


def encoded(features: FeatureMap, dtype: Dtype) -> dict[str, Tensor]:
    """A map ``(n, v, gh, gw, d)`` as stored; masked values are 0.

    ``int8`` has a ``scale`` of ``(n, v, gh, gw)``: the largest magnitude of a token is 127 of it, so that no value is
    wrong by more than half of the scale.
    """
    clean = features.sanitized()
    values = clean.values.float()
    if dtype != "int8":
        return {"values": values.to(PARTS[dtype]["values"]), "mask": clean.mask}
    scale = values.abs().amax(-1) / _LARGEST
    # The smallest positive number, and not 0: a token of zeros is 0 again.
    steps = values / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return {"values": steps.round().to(torch.int8), "scale": scale, "mask": clean.mask}


def decoded(parts: dict[str, Tensor]) -> FeatureMap:
    """What :func:`encoded` stored, ``(n, v, gh, gw, d)`` in float32."""
    values = parts["values"].float()
    return FeatureMap(values * parts["scale"].unsqueeze(-1) if "scale" in parts else values, parts["mask"])


def small_pictures(images: Tensor) -> Tensor:
    """``(n, v, 3, h, w)`` in [0, 1] to ``(n, v, 3, SIDE, SIDE)`` uint8: means over the cells of a coarse grid."""
    n, v = images.shape[:2]
    means = F.adaptive_avg_pool2d(images.float().flatten(0, 1), SIDE).clamp(0, 1)
    return (means * 255).round().to(torch.uint8).reshape(n, v, 3, SIDE, SIDE)
