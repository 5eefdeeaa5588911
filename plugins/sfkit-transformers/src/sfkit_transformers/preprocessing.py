"""What an image processor says about a model's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfkit.errors import ConfigError


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        mean: What is subtracted from each channel of an image in [0, 1].
        std: What it is then divided by.
        size: Side of the square that the processor gives; None where it does not say.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None


def read_preprocessing(
    settings: Mapping[str, Any], where: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Read the settings of an image processor, for images that are in [0, 1] already.

    Args:
        settings: Of the processor; empty where the model has none.
        where: The model, for errors.
        mean: Instead of the processor's.
        std: Instead of the processor's.

    Raises:
        ConfigError: Mean and deviation are neither in the settings nor given.
    """
    size = _side(settings)
    if mean is not None and std is not None:
        return Preprocessing(tuple(mean), tuple(std), size)
    if mean is not None or std is not None:
        raise ConfigError("Of mean and std only one is given.", "Give both, for images in [0, 1].")
    if not settings:
        raise ConfigError(
            f"{where} has no preprocessor_config.json, so it is not known how its images are normalized.",
            "Set the options mean and std, for images in [0, 1], as the model's authors say.",
        )
    # The processor works on bytes: pixel * factor, minus mean, over std. Ours are pixel / 255.
    factor = float(settings.get("rescale_factor") or 1 / 255)
    if not settings.get("do_rescale", True) or settings.get("offset"):
        raise ConfigError(
            f"The image processor of {where} does not scale images to a range that begins at 0.",
            "Set the options mean and std, for images in [0, 1], as the model's authors say.",
        )
    scale = 255 * factor
    if not settings.get("do_normalize", True):
        return Preprocessing((0.0,) * 3, (1 / scale,) * 3, size)
    found = [settings.get("image_mean"), settings.get("image_std")]
    means, deviations = ([value] * 3 if isinstance(value, (int, float)) else value for value in found)
    if means is None or deviations is None:
        raise ConfigError(
            f"The image processor of {where} names no image_mean and image_std.",
            "Set the options mean and std, for images in [0, 1], as the model's authors say.",
        )
    return Preprocessing(tuple(m / scale for m in means), tuple(d / scale for d in deviations), size)


def _side(settings: Mapping[str, Any]) -> int | None:
    if settings.get("max_num_patches") and settings.get("patch_size"):
        return int(settings["max_num_patches"] ** 0.5) * int(settings["patch_size"])
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if not isinstance(size, Mapping):
        return size if isinstance(size, int) else None
    sides = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key)]
    return int(max(sides)) if sides else None
