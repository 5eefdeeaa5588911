"""Estimate of the memory of a forward pass beside the weights."""

from __future__ import annotations

from collections.abc import Sequence

from sfkit_backbones.memory import block_bytes

from sfkit_dust3r.config import DUSt3RConfig, Target

_FLOAT = 4


def working_bytes(
    sizes: DUSt3RConfig,
    target: Target,
    shape: tuple[int, int, int, int],
    layers: Sequence[int],
    *,
    product: int,
    residual: int,
) -> int:
    """Peak bytes of :meth:`PairBackbone.forward`, with its input, the images before resizing, and its output.

    Args:
        sizes: Sizes of the backbone.
        target: As in the backbone's forward.
        shape: ``(b, v, h, w)`` of the images.
        layers: As in the backbone's forward.
        product: Bytes of an element in matrix products.
        residual: Bytes of an element of the stream.
    """
    b, v, h, w = shape
    count = len(set(layers))
    image_bytes = b * v * 3 * h * w * _FLOAT
    tokens = b * v * (h // sizes.patch) * (w // sizes.patch)
    block = block_bytes(tokens, sizes.enc_dim, sizes.enc_hidden, product=product, residual=residual)
    if target == "encoder":
        return image_bytes + max(image_bytes, block + count * tokens * sizes.enc_dim * _FLOAT)
    # Tokens of one side of the pairs: all views but the first, or the only view, which is its own partner.
    side = tokens // v * max(v - 1, 1)
    stream = side * sizes.dec_dim * residual
    layer = block_bytes(side, sizes.dec_dim, sizes.dec_hidden, product=product, residual=residual)
    # The running layer, the other side's stream before and after it, and the keys and values of the cross-attention.
    working = layer + 2 * stream + 2 * side * sizes.dec_dim * _FLOAT
    encoded = tokens * sizes.enc_dim * _FLOAT
    handed = count * tokens * (sizes.dec_dim + (sizes.enc_dim if target == "both" else 0)) * _FLOAT
    kept = max(count - 1, 0) * 2 * stream
    return image_bytes + max(image_bytes, block, encoded + kept + working, encoded + kept + stream + handed)
