"""ImageNet's normalization."""

from __future__ import annotations

import torch

from sfkit.views.imagenet import IMAGENET_MEAN, IMAGENET_STD, imagenet_normalized


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    images = torch.rand(2, 3, 3, 4, 5)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(imagenet_normalized(images), (images - mean) / std)
