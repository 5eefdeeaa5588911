"""Known families of vision models: tokens before the patches, final norm, kind of input.

The names are those of transformers' configurations (``model_type``). A family that is not listed works where all its
tokens are patches, or where the option ``prefix_tokens`` gives the number of tokens before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sfkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """A family of vision models.

    Attributes:
        norm: Name of the norm module that the model applies to its last patch tokens; None without one.
        prefix: Number of tokens before the first patch, from the configuration; None if unknown.
        feed: Input of the model: an image, a clip of equal frames, or the flattened patches of an image.
        attention: Names, inside a block, of the norm before its attention and of the linear layers of queries and keys.
            None if unknown, or if the attention is not the plain softmax of their products.
    """

    norm: str | None = "layernorm"
    prefix: Callable[[PretrainedConfig], int] | None = lambda config: 0
    feed: Literal["image", "clip", "patches"] = "image"
    attention: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Shape:
    """Sizes from a configuration.

    Attributes:
        patch: Side in pixels of the patches of the last layer.
        widths: Channels of each layer.
        hidden: Widest channels inside the MLP of a block.
    """

    patch: int
    widths: tuple[int, ...]
    hidden: int


def _class_token(config: PretrainedConfig) -> int:
    return 1


def _class_and_registers(config: PretrainedConfig) -> int:
    return 1 + int(config.num_register_tokens)


FAMILIES: dict[str, Family] = {
    "dinov2": Family(prefix=_class_token, attention=("norm1", "query", "key")),
    "dinov2_with_registers": Family(prefix=_class_and_registers, attention=("norm1", "query", "key")),
    "dinov3_vit": Family(norm="norm", prefix=_class_and_registers),
    "dinov3_convnext": Family(norm="layer_norm"),
    "siglip_vision_model": Family(norm="post_layernorm", attention=("layer_norm1", "q_proj", "k_proj")),
    "siglip2_vision_model": Family(norm="post_layernorm", feed="patches"),
    # CLIP applies its post_layernorm to the class token only.
    "clip_vision_model": Family(norm=None, prefix=_class_token, attention=("layer_norm1", "q_proj", "k_proj")),
    "vjepa2": Family(feed="clip"),
    "ijepa": Family(),
    "vit": Family(prefix=_class_token, attention=("layernorm_before", "query", "key")),
    "vit_msn": Family(prefix=_class_token),
    "deit": Family(prefix=lambda config: 2),
}

#: The family of any other ``model_type``.
UNKNOWN = Family(norm=None, prefix=None)


def shape_of(config: PretrainedConfig) -> Shape:
    """Sizes of a vision model.

    Raises:
        ConfigError: The model has no patch tokens.
    """
    if config.model_type == "dinov3_convnext":
        widths = tuple(config.hidden_sizes)
        # A stem of stride 4, then each stage halves the grid.
        return Shape(4 * 2 ** (len(widths) - 1), widths, 4 * max(widths))
    try:
        patch, layers, width = config.patch_size, config.num_hidden_layers, config.hidden_size
    except AttributeError as error:
        raise ConfigError(
            f"A model of type {config.model_type!r} has no patch tokens: its configuration has no "
            f"{str(error).rsplit(' ', 1)[-1]}.",
            f"Vision models known to work: {', '.join(FAMILIES)}.",
        ) from None
    sides = set(patch) if isinstance(patch, (list, tuple)) else {patch}
    if len(sides) != 1 or not isinstance(width, int):
        raise ConfigError(
            f"A model of type {config.model_type!r} with patches of {patch} and widths of {width} is not supported.",
            "Its patches must be square, and its layers of one width.",
        )
    ratio = getattr(config, "mlp_ratio", 4)
    hidden = getattr(config, "intermediate_size", None) or int(width * ratio)
    return Shape(sides.pop(), (width,) * layers, hidden)
