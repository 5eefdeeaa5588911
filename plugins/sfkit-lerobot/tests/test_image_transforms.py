"""Image transforms are judged by what they do."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from sfkit_lerobot.image_transforms import refuse_moving
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from sfkit.errors import ConfigError

SIZE = (48, 64)


class Rolled(nn.Module):
    """A module of one's own."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.roll(3, 1)


class Renamed(v2.RandomCrop):
    """A subclass."""


class OwnGenerator(nn.Module):
    """Draws from a generator that no global seed reaches."""

    def __init__(self, flips: bool) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)
        self.flips = flips

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        drawn = self.generator.random()
        if self.flips:
            return image.flip(-1) if drawn < 0.1 else image
        return image * drawn if image.is_floating_point() else image


class Unrepeatable:
    """Draws from the operating system."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() * random.SystemRandom().random() + torch.from_numpy(np.random.default_rng().random(SIZE))


def _lerobots(**changes):
    from lerobot.transforms import ImageTransforms, ImageTransformsConfig

    config = ImageTransformsConfig(enable=True)
    for name in changes.pop("without", ()):
        del config.tfs[name]
    return ImageTransforms(config)


MOVING = {
    "sequential": lambda: nn.Sequential(v2.RandomHorizontalFlip()),
    "own-module": Rolled,
    "own-generator": lambda: OwnGenerator(flips=True),
    "subclass": lambda: Renamed(SIZE, padding=4),
    "rand-augment": v2.RandAugment,
    "auto-augment": v2.AutoAugment,
    "trivial-augment": v2.TrivialAugmentWide,
    "aug-mix": v2.AugMix,
    "seldom": lambda: v2.RandomHorizontalFlip(p=0.1),
    "random-apply": lambda: v2.RandomApply([v2.RandomRotation(10)], p=0.1),
    "random-choice": lambda: v2.RandomChoice([v2.ColorJitter(0.2), v2.RandomVerticalFlip(1.0)]),
    "lambda": lambda: v2.Lambda(lambda image: image.flip(-1)),
    "function": lambda: functools.partial(torch.roll, shifts=2, dims=-1),
    "half-turn": lambda: lambda image: image.flip(-1, -2),
    "transposed": lambda: lambda image: image.transpose(-1, -2),
    "first-version": lambda: v1.RandomRotation(5),
    "lerobots": _lerobots,
    "elastic": v2.ElasticTransform,
    "perspective": v2.RandomPerspective,
    "zoom-out": v2.RandomZoomOut,
    "scale-jitter": lambda: v2.ScaleJitter(SIZE),
    "crop": lambda: v2.RandomResizedCrop(SIZE, scale=(0.9, 1.0)),
    "pad": lambda: v2.Pad(4),
    "resize": lambda: v2.Resize((24, 32)),
}

PHOTOMETRIC = {
    "nothing": v2.Identity,
    "color": lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.2),
    "distortion": v2.RandomPhotometricDistort,
    "blur": lambda: v2.GaussianBlur(9, (0.1, 4.0)),
    "noise": v2.GaussianNoise,
    "jpeg": lambda: v2.JPEG((15, 75)),
    "gray": v2.RandomGrayscale,
    "invert": v2.RandomInvert,
    "solarize": lambda: v2.RandomSolarize(0.5),
    "posterize": lambda: v2.RandomPosterize(2),
    "equalize": v2.RandomEqualize,
    "contrast": v2.RandomAutocontrast,
    "sharpness": lambda: v2.RandomAdjustSharpness(2),
    "channels": v2.RandomChannelPermutation,
    "erasing": v2.RandomErasing,
    "normalize": lambda: v2.Normalize([0.5] * 3, [0.5] * 3),
    "floats": lambda: v2.ToDtype(torch.float32, scale=True),
    "sequential": lambda: nn.Sequential(v2.ColorJitter(0.3), v2.GaussianBlur(5)),
    "own-generator": lambda: OwnGenerator(flips=False),
    "first-version": lambda: v1.ColorJitter(0.2),
    "lerobots": lambda: _lerobots(without=["affine"]),
    **{
        name: lambda name=name: getattr(__import__("lerobot.transforms", fromlist=["x"]).transforms, name)()
        for name in ("MotionBlur", "JPEGCompression", "GaussianNoise", "GaussianPatchBrightness")
    },
}


@pytest.mark.parametrize("form", MOVING)
def test_fault_62_what_moves_pixels_is_refused_in_any_form(form) -> None:
    with pytest.raises(ConfigError, match="image_transforms move pixels"):
        refuse_moving(MOVING[form](), SIZE)


@pytest.mark.parametrize("form", PHOTOMETRIC)
def test_photometric_transforms_pass(form) -> None:
    refuse_moving(PHOTOMETRIC[form](), SIZE)


def test_no_transform_passes() -> None:
    refuse_moving(None, SIZE)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (lambda image: image.nothing, "raise AttributeError"),
        (lambda image: image.numpy(), "make a ndarray"),
        (v2.FiveCrop((32, 32)), "make a tuple"),
        (torch.zeros_like, "nothing of an image is left"),
        (Unrepeatable(), "cannot be drawn again"),
    ],
)
def test_fault_62_what_cannot_be_judged_is_refused(transform, reason) -> None:
    with pytest.raises(ConfigError, match=f"cannot be judged.*{reason}"):
        refuse_moving(transform, SIZE)


def test_a_transform_for_one_type_of_pixels_is_judged_on_it() -> None:
    def whole(image):
        assert image.dtype == torch.uint8
        return image.flip(-1)

    with pytest.raises(ConfigError, match="move pixels"):
        refuse_moving(whole, SIZE)
    refuse_moving(lambda image: 255 - whole(image).flip(-1), SIZE)


def test_random_states_stay_as_they_were() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = np.random.default_rng(0)

        def forward(self, image):
            return image * min(torch.rand(()).item(), random.random(), np.random.rand(), self.generator.random())

    transform = Draws()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    own = transform.generator.bit_generator.state
    refuse_moving(transform, SIZE)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert transform.generator.bit_generator.state == own
