"""The teacher ``hf:<repo or folder>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from sfkit_backbones.image_teacher import ImageOptions, ImageTeacher
from sfkit_backbones.memory import block_bytes
from torch import Tensor, nn

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError
from sfkit.registry.component import AnyOptions, Changeable, Harmless, Reaching
from sfkit.views.types import FeatureMap, Views
from sfkit_transformers.backbone import Backbone, Norms
from sfkit_transformers.checkpoint import Checkpoint, commit_of, vision_config
from sfkit_transformers.families import FAMILIES, UNKNOWN, shape_of
from sfkit_transformers.license import license_of
from sfkit_transformers.preprocessing import read_preprocessing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NAME = "hf"


class TransformersOptions(ImageOptions):
    """Options of :class:`TransformersTeacher`."""

    model: Reaching[str] = Field(description="Repository of the Hub, or a local folder; also written hf:<model>.")
    revision: Reaching[str | None] = Field(default=None, description="Commit, tag or branch of the repository.")
    norm: Norms = Field(
        default="last", description="Layers that the model's final norm applies to: the last, all, or none."
    )
    license: Changeable[Harmless[str | None]] = Field(
        default=None, description="License of the weights, if the model card does not state it."
    )
    mean: tuple[float, float, float] | None = Field(
        default=None, description="Mean of images in [0, 1]; replaces the image processor's."
    )
    std: tuple[float, float, float] | None = Field(
        default=None, description="Standard deviation of images in [0, 1]; replaces the image processor's."
    )
    prefix_tokens: int | None = Field(
        default=None, ge=0, description="Number of tokens before the patches, for model types unknown to sfkit."
    )
    ignore: Harmless[tuple[str, ...]] = Field(
        default=(), description="Further parts of the checkpoint that patch tokens do not need."
    )
    trust_remote_code: Changeable[bool] = Field(default=False, description="Run code from the model's repository.")


class TransformersTeacher(ImageTeacher):
    """Patch tokens of any vision model of transformers.

    Layer k is the stream after k blocks, ``hidden_states[k]`` of transformers (the k-th stage of a convolutional
    model), without class and register tokens. The last layer is the default. The model's final norm applies to it, so
    that it is ``last_hidden_state``; the option ``norm`` changes that.

    The network sees each view by itself. Images are resized to the option ``size`` (by default the size of the model's
    image processor), cropped only where ``fit`` says so, and normalized with the image processor's constants.
    """

    name = _NAME
    license = "the model's own"
    Options: ClassVar[type[Options]] = TransformersOptions
    options: TransformersOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        chosen = self.options
        self.name = f"{_NAME}:{chosen.model}"
        self._checkpoint = Checkpoint(chosen.model, chosen.revision, chosen.trust_remote_code)
        self._config = self._checkpoint.config()
        vision = vision_config(self._config)
        self._family = FAMILIES.get(vision.model_type, UNKNOWN)
        self._shape = shape_of(vision)
        if chosen.norm == "all" and (self._family.norm is None or len(set(self._shape.widths)) > 1):
            raise ConfigError(
                f"A model of type {vision.model_type!r} has no norm that fits the patch tokens of every layer.",
                "Set norm=last or norm=none.",
            )
        settings = self._checkpoint.processor(self._family.feed)
        self._preprocessing = read_preprocessing(settings, chosen.model, chosen.mean, chosen.std)
        self._prefix = chosen.prefix_tokens
        if self._prefix is None:
            self._prefix = 0 if self._family.prefix is None else self._family.prefix(vision)
        self.patch = self._shape.patch
        self.default_size = self._default_size(vision)
        # The gray level that normalization maps to zero.
        self.default_fill = min(1.0, max(0.0, sum(self._preprocessing.mean) / 3))
        self.license = chosen.license or license_of(chosen.model, self._checkpoint.folder, chosen.revision)
        self._check_side()

    @property
    def num_layers(self) -> int:
        return len(self._shape.widths)

    def dim(self, layer: int) -> int:
        return self._shape.widths[layer - 1]

    @property
    def spec(self) -> ComponentSpec:
        options = {key: value for key, value in super().spec.options.items() if key != "model"}
        return ComponentSpec(name=self.name, options=options)

    @property
    def identity(self) -> dict[str, str]:
        revision = commit_of(self._config) or self.options.revision
        model = self.options.model
        return {**super().identity, "weights": f"{model}@{revision}" if revision else model}

    def attention_heads(self, block: int) -> tuple[int, int]:
        if self._family.attention is None:
            known = ", ".join(name for name, family in FAMILIES.items() if family.attention is not None)
            raise ConfigError(
                f"Teacher {self.name!r} is of a kind whose queries and keys are not known to sfkit.",
                f"Kinds that are: {known}. Or choose an objective that reads features.",
            )
        heads = int(vision_config(self._config).num_attention_heads)
        return heads, self.dim(block) // heads

    # --------------------------------------------------------------------------------------------------------- loading

    def load(self, device: torch.device) -> nn.Module:
        backbone = self._backbone(self._checkpoint.network(self._config, self.options.ignore))
        _cast_linear(backbone, self._product_dtype(device))
        backbone.to(device).eval().requires_grad_(False)
        if self.options.compile:
            backbone.compile_blocks()
        return backbone

    def _meta_backbone(self, product: torch.dtype) -> nn.Module:
        backbone = self._backbone(self._checkpoint.skeleton(self._config))
        _cast_linear(backbone, product)
        return backbone

    def _backbone(self, model: nn.Module) -> Backbone:
        assert self._prefix is not None
        return Backbone(
            model,
            self._family,
            self._shape,
            mean=self._preprocessing.mean,
            std=self._preprocessing.std,
            norms=self.options.norm,
            prefix=self._prefix,
        )

    def _default_size(self, vision: PretrainedConfig) -> int:
        size: int | list[int] | tuple[int, ...] | None = self._preprocessing.size
        for name in ("image_size", "crop_size"):
            size = size or getattr(vision, name, None)
        if isinstance(size, (list, tuple)):
            size = max(size)
        # A processor's size may be no multiple of the patch. The model drops the remaining pixels, so this does too.
        return max(1, (size or 224) // self.patch) * self.patch

    # -------------------------------------------------------------------------------------------------------- features

    def encode_with_attention(
        self,
        model: nn.Module | None,
        views: Views,
        layers: Sequence[int],
        blocks: Sequence[int],
        grid: tuple[int, int],
    ) -> list[FeatureMap]:
        self.check(views, [*layers, *blocks])
        return self.feature_maps(model, views, [*layers, *(self.num_layers + block for block in blocks)])

    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """``(b, v, 3, h, w)`` images in [0, 1] to ``(b, v, rows, columns, d)`` for each layer.

        A layer ``num_layers + k`` stands for the scaled queries and the keys of block ``k``, concatenated.
        """
        last = self.num_layers
        own, blocks = [n for n in layers if n <= last], [n - last for n in layers if n > last]
        product = self._product_dtype(images.device)
        # Autocast keeps norms and the residual stream in float32, and casts matrix products only.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=product == torch.bfloat16):
            found: list[Tensor] = backbone(images.flatten(0, 1), own, blocks)
        return [tokens.reshape(*images.shape[:2], *tokens.shape[1:]) for tokens in found]

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        b, v, h, w = shape
        product = 2 if any(p.dtype == torch.bfloat16 for p in backbone.parameters()) else 4
        image_bytes = b * v * 3 * h * w * 4
        # The first stage of a convolutional model has the largest maps.
        stages = len(set(self._shape.widths)) > 1
        stride, dim = (4, self._shape.widths[0]) if stages else (self.patch, self._shape.widths[0])
        tokens = b * v * ((h // stride) * (w // stride) + (self._prefix or 0))
        kept = len(layers) * tokens * dim * 4
        hidden = 4 * dim if stages else self._shape.hidden
        return 2 * image_bytes + kept + block_bytes(tokens, dim, hidden, product=product)


def _cast_linear(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of linear layers in place; autocast would otherwise cast them again in each forward."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
