"""Images before the vision tower: resized, and in training augmented, *inside* the policy's forward.

Upstream: models_pytorch/preprocessing_pytorch.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from openpi.models.model import Observation

#: The cameras, in the order of their tokens.
IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def preprocess_observation_pytorch(
    observation: Observation, *, train: bool = False, image_resolution: tuple[int, int] = (224, 224)
) -> Observation:
    """The observation with images for the vision tower, in the order of ``IMAGE_KEYS``.

    The order is the policy's whatever that of the dictionary, entries of other names are dropped, and a camera without
    a mask counts as present.

    Raises:
        ValueError: A camera is not there.
    """
    if not set(IMAGE_KEYS).issubset(observation.images):
        raise ValueError(f"images dict missing keys: expected {IMAGE_KEYS}, got {list(observation.images)}")
    images, masks = {}, {}
    for key in IMAGE_KEYS:
        image = observation.images[key]
        channels_first = image.shape[1] == 3
        image = image if channels_first else image.permute(0, 3, 1, 2)
        if tuple(image.shape[-2:]) != image_resolution:
            image = _letterboxed(image, image_resolution[0])
        if train:
            image = image / 2 + 0.5
            if "wrist" not in key:
                image = _moved(image)
            image = _jittered(image).clamp(0, 1) * 2 - 1
        images[key] = image if channels_first else image.permute(0, 2, 3, 1)
        everywhere = torch.ones(len(image), dtype=torch.bool, device=image.device)
        masks[key] = observation.image_masks.get(key, everywhere)
    return Observation(
        images, masks, observation.state, observation.tokenized_prompt, observation.tokenized_prompt_mask,
        observation.token_ar_mask, observation.token_loss_mask,
    )  # fmt: skip


def _letterboxed(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    ratio = max(width / size, height / size)
    resized = (int(height / ratio), int(width / ratio))
    image = F.interpolate(image, size=resized, mode="bilinear", align_corners=False).clamp(-1, 1)
    top, left = (size - resized[0]) // 2, (size - resized[1]) // 2
    return F.pad(image, (left, size - resized[1] - left, top, size - resized[0] - top), value=-1.0)


def _moved(image: Tensor) -> Tensor:
    """Crop to 95 % and turn by up to 5 degrees, alike for the whole batch. What turns in from outside is black."""
    height, width = image.shape[-2:]
    crop_height, crop_width = int(height * 0.95), int(width * 0.95)
    top = torch.randint(0, height - crop_height + 1, (1,), device=image.device)
    left = torch.randint(0, width - crop_width + 1, (1,), device=image.device)
    image = image[:, :, top : top + crop_height, left : left + crop_width]
    image = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)
    angle = torch.rand(1, device=image.device) * 10 - 5
    if torch.abs(angle) > 0.1:  # depends on data: torch.compile breaks the graph here, as upstream
        radians = angle * math.pi / 180
        c, s, zero = torch.cos(radians), torch.sin(radians), torch.zeros_like(radians)
        turn = torch.stack([torch.cat([c, -s, zero]), torch.cat([s, c, zero])])
        grid = F.affine_grid(turn.expand(len(image), 2, 3), list(image.shape), align_corners=False)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return image


def _jittered(image: Tensor) -> Tensor:
    """Brightness, contrast and saturation, alike for the whole batch: black does not stay black."""
    device = image.device
    image = image * (0.7 + 0.6 * torch.rand(1, device=device))
    mean = image.mean((1, 2, 3), keepdim=True)
    image = (image - mean) * (0.6 + 0.8 * torch.rand(1, device=device)) + mean
    gray = image.mean(1, keepdim=True)
    return gray + (image - gray) * (0.5 + torch.rand(1, device=device))
