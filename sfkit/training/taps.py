"""Taps and watches: read what passes through a module, once for each armed forward or each time."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfkit.config import ENCODER, StudentLayer, block_of
from sfkit.errors import TapError
from sfkit.policies.base import PolicyAdapter, TapPoint
from sfkit.utils.runtime import own_rng
from sfkit.views.types import FeatureMap, Views

#: What a tap hands over: one tensor, or every one of a forward, where the point says so.
Captured: TypeAlias = "Tensor | tuple[Tensor, ...]"


def tap_at(adapter: PolicyAdapter, student_layer: StudentLayer) -> Tap:
    """A tap at a layer, at the output of the vision tower, or at what a block's queries and keys are made of."""
    block = block_of(student_layer)
    if block is not None:
        return Tap(student_layer, adapter.tap(block - 1))
    return Tap(student_layer, adapter.encoder_tap() if isinstance(student_layer, str) else adapter.tap(student_layer))


def tokens_at(adapter: PolicyAdapter, student_layer: StudentLayer, captured: Captured, views: Views) -> FeatureMap:
    """The visual tokens in what was captured there, or their queries and keys."""
    block = block_of(student_layer)
    if block is not None:
        assert isinstance(captured, Tensor)
        with own_rng(captured.device):  # dropout of an adapter on the projections
            return adapter.attention_tokens(captured, block, views)
    if isinstance(captured, Tensor):
        return adapter.visual_tokens(captured, views)
    return adapter.encoder_tokens(captured, views)


def student_layer_name(student_layer: StudentLayer) -> str:
    """``"student layer 3"``, ``"the encoder"`` or ``"the attention of block 3"``, for messages."""
    block = block_of(student_layer)
    if block is not None:
        return f"the attention of block {block}"
    return "the encoder" if student_layer == ENCODER else f"student layer {student_layer}"


class Tap:
    """One persistent pre-hook that keeps the first input of a module while armed.

    It is installed once and gated by ``armed`` rather than registered for each forward: a hook that comes and goes is
    silently dead under ``torch.compile`` after the first call. It is a bound method rather than a closure, so that
    ``deepcopy`` and pickle rebind it to the copied tap. It keeps the first call, or with ``all_calls`` of the point
    all of them; activation checkpointing fires it again during backward, when it is disarmed.
    """

    def __init__(self, student_layer: StudentLayer, point: TapPoint) -> None:
        self.student_layer = student_layer
        self.path = point.path
        self.all_calls = point.all_calls
        self.armed = False
        self.fired = 0
        self.without_gradient = False
        self.hidden: Tensor | None = None
        self._later: list[Tensor] = []
        self._others = [Tap(student_layer, TapPoint(module, point.path)) for module in point.extra_modules]
        self._handle: RemovableHandle = point.module.register_forward_pre_hook(self.capture, with_kwargs=True)

    def capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook itself. It must return None, or torch would replace the module's input."""
        if self.armed:
            self.fired += 1
            self.without_gradient = not torch.is_grad_enabled()
            found = args[0] if args else next(iter(kwargs.values()))
            if self.hidden is None:
                self.hidden = found
            elif self.all_calls:
                self._later.append(found)

    def arm(self) -> None:
        """Start a forward."""
        self.armed, self.fired, self.hidden, self._later = True, 0, None, []
        for other in self._others:
            other.arm()

    def disarm(self) -> None:
        """End a forward and forget what was kept: no graph stays alive between steps."""
        self.armed, self.hidden, self._later = False, None, []
        for other in self._others:
            other.disarm()

    def take(self) -> Captured:
        """Hand over the captured tensor, ``(b, n, d)`` or a map ``(b, d, h, w)``, or all of them, and forget them.

        Raises:
            TapError: The tap did not fire in this forward, or caught something that is no such tensor.
        """
        hidden, later, self.hidden, self._later = self.hidden, self._later, None, []
        if hidden is None:
            raise TapError(
                f"The tap at {student_layer_name(self.student_layer)} ({self.path}, input) did not fire "
                "during forward.",
                "The policy's forward does not call this module: check the framework's version against the adapter's. "
                "If its blocks were compiled one by one, torch reuses another block's graph, which has no tap: compile "
                "the whole policy, or set torch._dynamo.config.skip_nnmodule_hook_guards = False.",
            )
        for state in (hidden, *later):
            if not isinstance(state, Tensor) or state.ndim not in (3, 4):
                found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
                where = student_layer_name(self.student_layer)
                raise TapError(
                    f"The tap at {where} ({self.path}) caught {found}, expected (b, n, d) or a map (b, d, h, w)."
                )
        if self._others:
            return torch.cat([hidden, *(other.take() for other in self._others)])  # type: ignore[list-item]
        return (hidden, *later) if self.all_calls else hidden

    def remove(self) -> None:
        """Take the hook off."""
        self.disarm()
        self._handle.remove()
        for other in self._others:
            other.remove()


class InputRecorder:
    """One persistent pre-hook that keeps, detached, every first input of a module while armed, or what is read of it.

    Like a :class:`Tap` it is gated and not registered anew, and is disarmed before backward.
    """

    def __init__(self, point: TapPoint) -> None:
        self.path = point.path
        self.armed = False
        self.inputs: list[Any] = []
        self._read = point.extract
        self._handle: RemovableHandle = point.module.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook itself. It must return None, or torch would replace the module's input."""
        if self.armed:
            value = args[0] if args else next(iter(kwargs.values()))
            self.inputs.append(value.detach() if self._read is None else self._read(module, value))

    def arm(self) -> None:
        """Start a forward."""
        self.armed, self.inputs = True, []

    def disarm(self) -> None:
        """End a forward and forget what was kept."""
        self.armed, self.inputs = False, []

    def take(self) -> tuple[Any, ...]:
        """Hand over what was kept, in the order in which the module ran, and forget it.

        Raises:
            TapError: The module did not run in this forward.
        """
        inputs, self.inputs = tuple(self.inputs), []
        if not inputs:
            raise TapError(
                f"{self.path} did not run during forward, so the policy's pictures are not known.",
                "The policy's forward does not call this module: check the framework's version against the adapter's.",
            )
        return inputs

    def remove(self) -> None:
        """Take the hook off."""
        self.disarm()
        self._handle.remove()
