"""The adapter of ``PI0Pytorch`` (``openpi.models_pytorch.pi0_pytorch``): pi0 and pi0.5."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.errors import AdapterError, SfkitWarning, ShapeError, ViewsError
from sfkit.policies.base import AdapterOptions, ForwardCall, PolicyAdapter, TapPoint
from sfkit.policies.tokens import cut, tower_tokens
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.views.geometry import view_geometry
from sfkit.views.types import FeatureMap, Views
from sfkit_openpi.geometry import StillCameras, depth_maps, source_to_view
from sfkit_openpi.overlay import refuse_stale_overlay
from sfkit_openpi.pixels import has_bars, inside_bars

_PALIGEMMA = "paligemma_with_expert.paligemma"
_DECODER = f"{_PALIGEMMA}.model.language_model"
_TOWER = f"{_PALIGEMMA}.model.vision_tower"
_CONNECTOR = f"{_PALIGEMMA}.model.multi_modal_projector"
_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
_TOLERANCE = 1e-3


class OpenPIOptions(AdapterOptions):
    """Options of :class:`OpenPIAdapter`."""

    cameras: Harmless[tuple[str, ...] | None] = Field(
        default=None,
        description="Cameras in the order of their tokens; by default IMAGE_KEYS of openpi's preprocessing.",
    )
    bars: Harmless[bool] = Field(
        default=True,
        description="Mask the black bars of letterboxed images, and equally dark areas that reach the border; set "
        "false if no image is letterboxed and scenes have dark borders.",
    )
    black: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Largest brightness of a bar in [0, 1], before augmentation; above 0 for images that were "
        "compressed after letterboxing.",
    )


class OpenPIAdapter(PolicyAdapter):
    """pi0 and pi0.5 of openpi. The sequence is the tokens of every camera, present or absent, then the prompt's.

    forward augments images at random, so the views are the inputs of the vision tower instead of the batch's images.
    Black bars, and whether a camera's pixels were moved, are detected in the pixels.
    """

    name = "openpi"
    Options: ClassVar[type[AdapterOptions]] = OpenPIOptions
    options: OpenPIOptions
    policy: Any

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        try:
            paligemma = self.policy.get_submodule(_PALIGEMMA)
            for path in (_DECODER, _TOWER, _CONNECTOR):
                self.policy.get_submodule(path)
        except AttributeError as error:
            raise AdapterError(
                f"{type(policy).__name__} is not built as openpi's PI0Pytorch: {error}.",
                "Use the model with transformers 4.53.2 and openpi's files over it, or write an adapter.",
            ) from error
        refuse_stale_overlay(paligemma)
        self._still = StillCameras()
        self._prompt_length = 0
        self._range_is_checked = False
        self._warned: str = ""

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def num_layers(self) -> int:
        return len(self.policy.get_submodule(_DECODER).layers)

    def dim(self, layer: int) -> int:
        return int(self._paligemma_config.text_config.hidden_size)

    def tap(self, layer: int) -> TapPoint:
        path = f"{_DECODER}.norm" if layer == self.num_layers else f"{_DECODER}.layers.{layer}.input_layernorm"
        return TapPoint(self.policy.get_submodule(path), path)

    def extra_hooks(self) -> Mapping[str, TapPoint]:
        return {"vision": TapPoint(self.policy.get_submodule(_TOWER), _TOWER)}

    def encoder_tap(self) -> TapPoint:
        return TapPoint(self.policy.get_submodule(_CONNECTOR), _CONNECTOR, all_calls=True)

    def encoder_dim(self) -> int:
        return int(self._paligemma_config.vision_config.hidden_size)

    @property
    def _paligemma_config(self) -> Any:
        return self.policy.get_submodule(_PALIGEMMA).config

    # --------------------------------------------------------------------------------------------------- views

    @property
    def names(self) -> tuple[str, ...]:
        """Cameras in the order of the policy's tokens, which may differ from the order of the observation."""
        if self.options.cameras is not None:
            return self.options.cameras
        for cls in type(self.policy).__mro__:
            preprocessing = getattr(sys.modules.get(cls.__module__), "_preprocessing", None)
            if preprocessing is not None:
                return tuple(preprocessing.IMAGE_KEYS)
        return _CAMERAS

    def views(self, call: ForwardCall) -> Views:
        observation = call.arguments["observation"]
        seen = self._seen(call.inputs["vision"])
        images = self._images(observation)
        if not self._range_is_checked:
            _check_range(images)
            self._range_is_checked = True
        self._prompt_length = int(observation.tokenized_prompt.shape[1])
        present = self._present(observation, seen)
        bars = torch.stack([self._has_bars(image, seen) for image in images.values()], 1)
        valid = present[:, :, None, None].expand(*seen.shape[:2], *seen.shape[-2:])
        if self.options.bars:
            flat = inside_bars(seen.flatten(0, 1), self.options.black)
            valid = valid & (flat.reshape(valid.shape) | ~bars[:, :, None, None])
        boxes = self._still.boxes(self.cameras, images, seen, present, bars)
        maps = {} if self.cameras is None else depth_maps(observation.images, self.cameras)
        index = getattr(observation, "index", None)
        geometry = view_geometry(self.cameras, {**maps, "index": index}, boxes, seen)
        if geometry.intrinsics is not None:
            self._warn_of_moved_cameras()
        return Views(
            images=seen,
            valid=valid,
            names=tuple(images),
            depth=geometry.depth,
            intrinsics=geometry.intrinsics,
            world_from_camera=geometry.world_from_camera,
            source_to_view=None if self.cameras is None else source_to_view(boxes, present, seen),
        )

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        return self._still.explain(field, self.cameras)

    def _seen(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The tower's inputs, one ``(b, 3, h, w)`` for each camera, to ``(b, v, 3, h, w)`` in [0, 1]."""
        if len(inputs) != len(self.names):
            raise ViewsError(
                f"The vision tower ran {len(inputs)} times in this forward, for {len(self.names)} cameras "
                f"({', '.join(self.names)}).",
                'Name the cameras in the order of their tokens: adapter=("openpi", {"cameras": [...]}).',
            )
        return torch.stack(inputs, 1).float() * 0.5 + 0.5

    def _images(self, observation: Any) -> dict[str, Tensor]:
        """``(b, 3, h, w)`` in [-1, 1] by camera, before augmentation."""
        absent = [name for name in self.names if name not in observation.images]
        if absent:
            raise ViewsError(
                f"The observation has no image of {', '.join(absent)}; it has {', '.join(observation.images)}.",
                'Name the cameras in the order of their tokens: adapter=("openpi", {"cameras": [...]}).',
            )
        return {name: observation.images[name] for name in self.names}

    def _present(self, observation: Any, seen: Tensor) -> Tensor:
        """``(b, v)`` bool for views ``(b, v, 3, h, w)``; a camera without a mask is present, as in openpi."""
        everywhere = torch.ones(len(seen), dtype=torch.bool, device=seen.device)
        masks = [observation.image_masks.get(name, everywhere) for name in self.names]
        return torch.stack([mask.to(seen.device, torch.bool) for mask in masks], 1)

    def _has_bars(self, image: Tensor, seen: Tensor) -> Tensor:
        """``(b,)`` bool for images ``(b, 3, h, w)`` in [-1, 1] before augmentation and views ``(b, v, 3, h', w')``."""
        if image.shape[-2] * seen.shape[-1] != image.shape[-1] * seen.shape[-2]:
            return torch.ones(len(image), dtype=torch.bool, device=seen.device)  # forward letterboxes it itself
        return has_bars(image, self.options.black).to(seen.device)

    def _warn_of_moved_cameras(self) -> None:
        message = self._still.warning()
        if message and message != self._warned:
            self._warned = message
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=2)

    # -------------------------------------------------------------------------------------------------- tokens

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """The first tokens of the sequence, ``(b, n, d)`` to ``(b, v, rows, columns, d)``: camera after camera."""
        grid, v = self._grid(views), len(views.names)
        count = v * grid[0] * grid[1]
        if hidden.shape[1] != count + self._prompt_length:
            raise ShapeError(
                f"The decoder of {type(self.policy).__name__} was given {hidden.shape[1]} tokens, expected "
                f"{v} views of {grid[0]}x{grid[1]} and {self._prompt_length} of the prompt.",
                "This version of openpi orders its tokens differently: the adapter must be changed.",
            )
        tokens = cut(hidden, 0, count, self.options.token_shift)
        return FeatureMap(tokens.reshape(len(hidden), v, *grid, -1), views.token_mask(grid))

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        return tower_tokens(states, views, self._grid(views))

    def _grid(self, views: Views) -> tuple[int, int]:
        patch = int(self._paligemma_config.vision_config.patch_size)
        return views.size[0] // patch, views.size[1] // patch


def _check_range(images: Mapping[str, Tensor]) -> None:
    """Check the range of the batch's images: openpi clamps them, so that the core's later check would pass."""
    remedy = "openpi's Observation holds float images in [-1, 1]: make it with Observation.from_dict, from uint8."
    for name, image in images.items():
        if not image.is_floating_point():
            raise ViewsError(f"{name} is of type {image.dtype}, expected float in [-1, 1].", remedy)
        low, high = float(image.min()), float(image.max())
        if low < -1 - _TOLERANCE or high > 1 + _TOLERANCE:
            raise ViewsError(
                f"{name} ranges from {low:.3g} to {high:.3g}, expected [-1, 1]; openpi would clamp it silently.",
                remedy,
            )
    if min(float(image.min()) for image in images.values()) >= 0:
        warnings.warn(
            "sfkit: no pixel of the first batch is below 0, so that its images seem to be in [0, 1] and not in "
            f"[-1, 1]: policy and teacher would see them pale. {remedy}",
            SfkitWarning,
            stacklevel=2,
        )
