"""The generic adapter: any policy, described by paths and spans, or by functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import AdapterError, ConfigError, LossError, ShapeError, ViewsError
from sfkit.policies.base import ForwardCall, PolicyAdapter, TapPoint, find_loss, replace_loss
from sfkit.policies.generic.blocks import Stack
from sfkit.policies.generic.options import GenericOptions
from sfkit.policies.generic.paths import describe, find_module, find_value, loss_at, with_loss_at
from sfkit.policies.generic.pixels import check_pixels, to_views, undo
from sfkit.policies.generic.tokens import batch_positions, cut
from sfkit.policies.tokens import tower_tokens
from sfkit.registry.component import AnyOptions
from sfkit.views.types import FeatureMap, Views

_METERS = {"m": 1.0, "mm": 0.001}


class GenericAdapter(PolicyAdapter):
    """An adapter for any ``nn.Module``, for ``SpatialForcing.wrap(policy, adapter=GenericAdapter(...))``.

    Args:
        policy: Users leave it out: ``wrap`` binds the adapter to its policy.
        options: All options at once, as in a saved configuration.
        fields: Or each option by name; see :class:`sfkit.policies.generic.GenericOptions`.

    Raises:
        ConfigError: An option is unknown, missing, or contradicts another.
        AdapterError: With a policy: a path leads nowhere, or no width is known.
    """

    name = "generic"
    Options: ClassVar[type[Options]] = GenericOptions
    options: GenericOptions

    def __init__(self, policy: nn.Module | None = None, options: AnyOptions = None, **fields: object) -> None:
        if options is not None and fields:
            raise ConfigError("GenericAdapter was given options and single fields.", "Give one or the other.")
        self._stack: Stack | None = None
        self._positions: Tensor | None = None
        self._checked = False
        self.configure(fields if options is None else options)
        self.loss_outside = self.options.loss == "outside"
        if policy is not None:
            self.policy = policy
            self._stack = Stack.of(policy, self.options)

    def bind(self, policy: nn.Module) -> GenericAdapter:
        # A new instance for each policy: the user may pass one adapter to several calls of wrap.
        return self if self._stack is not None and self.policy is policy else type(self)(policy, self.options)

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def stack(self) -> Stack:
        """The blocks.

        Raises:
            AdapterError: The adapter is not bound to a policy yet.
        """
        if self._stack is None:
            raise AdapterError("This GenericAdapter belongs to no policy yet.", "Use adapter.bind(policy).")
        return self._stack

    @property
    def num_layers(self) -> int:
        return len(self.stack.points) - 1

    def dim(self, layer: int) -> int:
        if self.stack.dim is None:
            raise AdapterError(f"{type(self.policy).__name__} has no norm that gives the width.", "Add dim=(width).")
        return self.stack.dim

    def tap(self, layer: int) -> TapPoint:
        point = self.stack.points[layer]
        if point is None:
            raise AdapterError(
                f"Layer {layer} is after the last block, and no norm is known there.",
                "Add final_norm='path of the norm after the blocks', or choose a smaller layer.",
            )
        return point

    def encoder_tap(self) -> TapPoint:
        path = self.options.connector
        if path is None:
            raise ConfigError(
                "The GenericAdapter has no option connector, so it cannot read the vision tower's output.",
                "Add connector='path of the module behind the tower' and tower=(rows, columns, width).",
            )
        return TapPoint(find_module(self.policy, path, "connector"), path, all_calls=True)

    def encoder_dim(self) -> int:
        assert self.options.tower is not None  # the options refuse a connector without it
        return self.options.tower[2]

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        assert self.options.tower is not None
        return tower_tokens(states, views, self.options.tower[:2])

    # --------------------------------------------------------------------------------------------------- views

    def views(self, call: ForwardCall) -> Views:
        if self.cameras is not None:
            raise ConfigError(
                "The generic adapter does not know how cameras=... belong to its views.",
                "Put them into the batch and give depth=, intrinsics=, world_from_camera=; or write a PolicyAdapter.",
            )
        options = self.options
        images = to_views(self._value(call, "images"), options)
        present = self._present(call, images)
        valid = self._valid(call, images) & present[:, :, None, None]
        # On the first batch alone, because it waits for the device.
        if not self._checked:
            check_pixels(images, valid, options.pixels)
            self._checked = True
        self._positions = batch_positions(call, options, present)
        depth = self._field(call, "depth", images)
        return Views(
            images=undo(images, options.pixels),
            valid=valid,
            names=self._names(images),
            depth=None if depth is None else depth * _METERS[options.depth_unit or "m"],
            intrinsics=self._field(call, "intrinsics", images),
            world_from_camera=self._field(call, "world_from_camera", images),
        )

    def future_views(self, call: ForwardCall, steps: int) -> Views:
        options = self.options
        if steps not in options.future:
            raise ConfigError(f"GenericAdapter has no images {steps} steps ahead.", f"Add future={{{steps}: 'path'}}.")
        images = to_views(_at(call, options.future[steps], "future"), options)
        present = self._present(call, images)
        if steps in options.future_present:
            goes_on = _at(call, options.future_present[steps], "future_present")
            present = present & _flags(goes_on, "future_present", images)
        return Views(
            images=undo(images, options.pixels),
            valid=self._valid(call, images) & present[:, :, None, None],
            names=self._names(images),
            intrinsics=self._field(call, "intrinsics", images),
        )

    def _names(self, images: Tensor) -> tuple[str, ...]:
        """A name for each of the ``(b, v, 3, h, w)`` views."""
        return self.options.names or tuple(f"view{index}" for index in range(images.shape[1]))

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        return f"The GenericAdapter has no option {field}: add {field}='path in the batch'."

    def _value(self, call: ForwardCall, option: str) -> object:
        """What an option points at: a value, or a tuple of one for each view."""
        where = getattr(self.options, option)
        return where(call) if callable(where) else _at(call, where, option)

    def _field(self, call: ForwardCall, option: str, like: Tensor) -> Tensor | None:
        """A tensor ``(b, v, ...)`` in float32, on the device of ``like``."""
        if getattr(self.options, option) is None:
            return None
        value = _stacked(self._value(call, option), option)
        if value.dtype == torch.bfloat16:
            raise ViewsError(
                f"{option} arrives as bfloat16, in which 998.9 becomes 1000.", "Cast the model, not its inputs."
            )
        return value.to(like.device, torch.float32)

    def _present(self, call: ForwardCall, images: Tensor) -> Tensor:
        """``(b, v)`` bool for ``(b, v, 3, h, w)`` images."""
        if self.options.present is None:
            return torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        return _flags(self._value(call, "present"), "present", images)

    def _valid(self, call: ForwardCall, images: Tensor) -> Tensor:
        """``(b, v, h, w)`` bool for ``(b, v, 3, h, w)`` images."""
        b, v, _, h, w = images.shape
        where = self.options.valid
        if where is None:
            return torch.ones(b, v, h, w, dtype=torch.bool, device=images.device)
        if isinstance(where, tuple) and all(isinstance(side, int) for side in where):
            top, left, height, width = (int(side) for side in where)
            if top + height > h or left + width > w:
                raise ShapeError(f"valid={where} (top, left, height, width) leads beyond a view of {h}x{w} pixels.")
            inside = torch.zeros(b, v, h, w, dtype=torch.bool, device=images.device)
            inside[:, :, top : top + height, left : left + width] = True
            return inside
        valid = self._field(call, "valid", images)
        assert valid is not None
        if tuple(valid.shape) != (b, v, h, w):
            raise ShapeError(f"valid has shape {tuple(valid.shape)}, expected {(b, v, h, w)}.")
        return valid != 0

    # -------------------------------------------------------------------------------------------------- tokens

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """``(b, n, d)`` to ``(b, v, gh, gw, d)``."""
        if hidden.shape[-1] != self.dim(0):
            raise ShapeError(f"The tap has width {hidden.shape[-1]}, expected {self.dim(0)}.", "Correct norm or dim.")
        return cut(hidden, self.options, self._positions, views)

    # ---------------------------------------------------------------------------------------------------- loss

    def loss(self, output: object) -> Tensor | None:
        where = self.options.loss
        if self.loss_outside:
            return None
        if where is not None:
            return loss_at(output, where)
        loss = find_loss(output)
        if loss is not None and loss.ndim > 1 and not isinstance(output, Mapping):
            raise LossError(
                f"{type(self.policy).__name__} returned a tensor of shape {tuple(loss.shape)}, which may be a loss "
                "for each element, or predictions.",
                "Say which: GenericAdapter(loss='output'), or loss='outside' where the training loop computes it.",
            )
        return loss

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """``output`` with its loss replaced by ``loss``, ``()`` or ``(b, ...)``."""
        where = self.options.loss
        if where in (None, "output"):
            return replace_loss(output, loss)
        return with_loss_at(output, str(where), loss)


def _at(call: ForwardCall, where: str | tuple[str, ...], option: str) -> object:
    """The value at a path, or a tuple of one for each view."""
    if isinstance(where, tuple):
        return tuple(find_value(call.arguments, path, option) for path in where)
    return find_value(call.arguments, where, option)


def _stacked(value: object, option: str) -> Tensor:
    """``(b, v, ...)`` from a tensor, or from a tuple of ``(b, ...)`` for each view."""
    stacked = torch.stack(value, 1) if isinstance(value, tuple) else value
    if not isinstance(stacked, Tensor):
        raise ViewsError(f"{option} is a {describe(stacked)}, not a tensor.")
    return stacked


def _flags(value: object, option: str, images: Tensor) -> Tensor:
    """``(b, v)`` bool on the device of the ``(b, v, 3, h, w)`` images."""
    flags = _stacked(value, option)
    if flags.shape != images.shape[:2]:
        shape = tuple(images.shape[:2])
        raise ShapeError(f"{option} has shape {tuple(flags.shape)}, expected {shape}: samples, views.")
    return flags.to(images.device) != 0
