"""Size and normalization of a model's images, from the settings of its image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfkit.errors import ConfigError


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a model's images.

    Attributes:
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel, for images in [0, 1].
        size: Side in pixels of the processor's square output; None if it is not stated.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None


def read_preprocessing(
    settings: Mapping[str, Any], where: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Read the settings of an image processor, for images in [0, 1].

    Args:
        settings: Settings of the processor; empty if the model has none.
        where: Name of the model, for error messages.
        mean: Replaces the processor's mean.
        std: Replaces the processor's standard deviation.

    Raises:
        ConfigError: Mean and standard deviation are neither in the settings nor given.
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
    # The processor computes (byte * factor - mean) / std. Views hold byte / 255, so its constants are rescaled.
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
