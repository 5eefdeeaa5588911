"""The adapter of OpenVLA and OpenVLA-OFT."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import AdapterError, ConfigError, ShapeError
from sfkit.policies.base import AdapterOptions, ForwardCall, PolicyAdapter, TapPoint
from sfkit.policies.tokens import cut, tower_tokens
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.views.types import FeatureMap, Views
from sfkit_openvla.images import Half, Normalization, check_halves, inside_bars, read_normalization, to_images

#: Names by the number of views, in the order of OFT's loop (``prismatic/vla/datasets/datasets.py``).
_NAMES = {1: ("primary",), 2: ("primary", "wrist"), 3: ("primary", "left_wrist", "right_wrist")}


class OpenVLAOptions(AdapterOptions):
    """Options of :class:`OpenVLAAdapter`."""

    teacher_images: Half = Field(
        default="siglip", description="Half of the channels that teachers see; the released recipe uses dino."
    )
    normalization: Harmless[tuple[Normalization, ...] | None] = Field(
        default=None,
        description="The processor's constants, processor.image_processor.tvf_normalize_params; for dino read from the "
        "preprocessor_config.json beside the policy's weights.",
    )
    view_names: Harmless[tuple[str, ...] | None] = Field(
        default=None, description="Names of the views, in the order of the channels; by default as in OFT's loop."
    )
    verify_images: Harmless[bool] = Field(
        default=True, description="On the first batch, check that both halves of the channels show one image."
    )


class OpenVLAAdapter(PolicyAdapter):
    """OpenVLA and OpenVLA-OFT. Their sequence is BOS, the visual tokens of all views, then text and actions.

    Both classes have the same name; only OFT's forward has the argument ``use_film``.

    Raises:
        AdapterError: The policy is built differently.
    """

    name = "openvla"
    Options: ClassVar[type[Options]] = OpenVLAOptions
    options: OpenVLAOptions
    policy: Any

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        # LoRA, DDP and compile keep these objects and change their paths, so the objects are stored. The vision
        # backbone is looked up each time: FiLM replaces it after LoRA.
        try:
            self._decoder: Any = self.policy.language_model.model
            self._norm: nn.Module = self._decoder.norm
        except AttributeError as error:
            raise AdapterError(
                f"{type(policy).__name__} has no language_model.model with a norm at its end ({error}).",
                "This adapter is for OpenVLA's Llama and Mistral decoders; write an adapter for others.",
            ) from None
        self.is_oft = "use_film" in inspect.signature(type(policy).forward).parameters
        # OFT's loop uses the output's loss for discrete actions only; its other heads compute a loss from hidden
        # states. The call does not show which, so the alignment loss cannot be added to the output's loss.
        self.loss_outside = self.is_oft
        self._verified = not self.options.verify_images
        self._constants = self.options.normalization
        fused = bool(self.vision.use_fused_vision_backbone)
        if self._constants is None and fused and self.options.teacher_images == "dino":
            self._constants = read_normalization(self.policy.config)
        if self._constants is not None and len(self._constants) != 1 + fused:
            raise ConfigError(
                f"There are {len(self._constants)} normalizations of images, for {1 + fused} featurizers.",
                "Give processor.image_processor.tvf_normalize_params, of the policy's own processor.",
            )
        self._expected_length = 0

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def num_layers(self) -> int:
        return len(self._decoder.layers)

    @property
    def default_student_layer(self) -> int:
        """Three quarters of the blocks: 24 of 32, as released."""
        return max(1, round(3 * self.num_layers / 4))

    def dim(self, layer: int) -> int:
        return int(self._decoder.embed_tokens.weight.shape[1])

    def tap(self, layer: int) -> TapPoint:
        if layer == self.num_layers:
            return TapPoint(self._norm, "language_model.model.norm")
        path = f"language_model.model.layers.{layer}.input_layernorm"
        return TapPoint(self._decoder.layers[layer].input_layernorm, path)

    # --------------------------------------------------------------------------------------------------- views

    @property
    def vision(self) -> Any:
        """The vision backbone with the featurizers, also inside a FiLM wrapper."""
        backbone = self.policy.vision_backbone
        return backbone if hasattr(backbone, "featurizer") else backbone.vision_backbone

    @property
    def num_views(self) -> int:
        """Images per sample: one for OpenVLA, the configured number for OFT."""
        return int(getattr(self.vision, "num_images_in_input", 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a view's tokens; channel fusion and FiLM do not change them."""
        rows, columns = self.vision.featurizer.patch_embed.grid_size
        return int(rows), int(columns)

    def views(self, call: ForwardCall) -> Views:
        pixel_values = call.arguments["pixel_values"]
        fused, count = bool(self.vision.use_fused_vision_backbone), self.num_views
        images = to_images(
            pixel_values, count, fused=fused, half=self.options.teacher_images, constants=self._constants
        )
        if fused and not self._verified:
            check_halves(pixel_values, count, self._constants)
        self._verified = True
        self._expected_length = self._sequence_length(call.arguments)
        if self.options.teacher_images == "dino":
            images = images.clamp(0, 1)
        b, v, _, h, w = images.shape
        valid = torch.ones(b, v, h, w, dtype=torch.bool, device=images.device)
        if getattr(self.policy.config, "image_resize_strategy", None) == "letterbox":
            valid = inside_bars(images)
        return Views(images, valid, self._names(v))

    def _names(self, count: int) -> tuple[str, ...]:
        names = self.options.view_names
        if names is None:
            return _NAMES.get(count) or tuple(f"view_{index}" for index in range(count))
        if len(names) != count:
            raise ConfigError(
                f"view_names lists {len(names)} ({', '.join(names)}), the policy takes {count}.",
                "Name each view, in the order of pixel_values' channels.",
            )
        return names

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        forward = f"{type(self.policy).__name__}.forward"
        return f"{forward} gets images (pixel_values) and no {field}: vggt and da3-base need none."

    # -------------------------------------------------------------------------------------------------- tokens

    def _sequence_length(self, arguments: Mapping[str, Any]) -> int:
        """Length of the sequence for these arguments of forward."""
        rows, columns = self.grid
        length = int(arguments["input_ids"].shape[1]) + self.num_views * rows * columns
        if arguments.get("proprio") is not None and arguments.get("proprio_projector") is not None:
            length += 1
        time = arguments.get("diffusion_timestep_embeddings")
        return length if time is None else length + int(time.shape[1])

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """The tokens after BOS, ``(b, n, d)`` to ``(b, v, rows, columns, d)``: view after view, row-major."""
        (rows, columns), (b, v) = self.grid, views.images.shape[:2]
        count = v * rows * columns
        if hidden.shape[:2] != (b, self._expected_length):
            raise ShapeError(
                f"The decoder of {type(self.policy).__name__} was given (batch, tokens) {tuple(hidden.shape[:2])}, "
                f"expected {(b, self._expected_length)}: the text, and {count} visual tokens "
                f"({v} x {rows} x {columns}) from position 1 on, with OFT's proprio and time tokens behind them.",
                "This code orders its sequence differently from the released one: write an adapter for it.",
            )
        tokens = cut(hidden, 1, count, self.options.token_shift).reshape(b, v, rows, columns, -1)
        return FeatureMap(tokens, views.token_mask((rows, columns)))

    # ----------------------------------------------------------------------------------------------- encoder

    def encoder_tap(self) -> TapPoint:
        """The vision backbone's output, with both featurizers concatenated on channels, before the projector."""
        return TapPoint(self.policy.projector, "projector", all_calls=True)

    def encoder_dim(self) -> int:
        return int(self.vision.embed_dim)

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        """All views come in one sequence, without class or register tokens."""
        (rows, columns), (b, v) = self.grid, views.images.shape[:2]
        return tower_tokens([state.reshape(b * v, -1, state.shape[-1]) for state in states], views, (rows, columns))

    def unfreeze_hint(self) -> str:
        return 'LoRA on all linear layers, target_modules="all-linear", as upstream\'s scripts do'

    # ---------------------------------------------------------------------------------------------------- loss

    def loss(self, output: object) -> Tensor | None:
        found = super().loss(output)
        # Without labels, the first entry of the output is the logits.
        return found if found is not None and found.ndim == 0 else None
