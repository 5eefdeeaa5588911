"""ImageNet's normalization of images."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalized(images: Tensor) -> Tensor:
    """Images ``(..., 3, h, w)`` in [0, 1], less ImageNet's mean, over its deviation.

    By scalars: a tensor of constants would have to be sent to the device, and waited for.
    """
    channels = zip(images.unbind(-3), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], -3)
