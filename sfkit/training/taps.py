"""Tap sites, and the hooks that read them: persistent forward pre-hooks, armed for the policy's own forward alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfkit.config import ENCODER, StudentLayer
from sfkit.errors import ConfigError, TapError
from sfkit.policies.base import PolicyAdapter, TapPoint
from sfkit.utils.runtime import is_sharded, own_rng
from sfkit.views.types import FeatureMap, Views

#: What one tap read in one forward: one tensor for each module, or for each call.
Captured: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Residual:
    """The residual stream after ``student_layer`` blocks: ``hidden_states[student_layer]`` of Hugging Face.

    Like every site it says which module to hook (``tap``), how wide its tokens are (``width``), and which visual tokens
    ``(b, v, gh, gw, d)`` are in the captured tensors (``tokens``). Equal sites read the same tensors.
    """

    student_layer: int

    def __str__(self) -> str:
        return f"student layer {self.student_layer}"

    @property
    def key(self) -> str:
        """A short name, for saved figures."""
        return str(self.student_layer)

    def tap(self, adapter: PolicyAdapter) -> TapPoint:
        if not 0 <= self.student_layer <= adapter.num_layers:
            raise ConfigError(
                f"Student layer {self.student_layer} is out of range for {type(adapter.policy).__name__}.",
                f"Student layers are 0 (embeddings) to {adapter.num_layers} (after the last block).",
            )
        return adapter.tap(self.student_layer)

    def width(self, adapter: PolicyAdapter) -> int:
        return adapter.dim(self.student_layer)

    def tokens(self, adapter: PolicyAdapter, captured: Captured, views: Views) -> FeatureMap:
        # One module for each camera: joined here, behind the hooks that measure gradients.
        return adapter.visual_tokens(captured[0] if len(captured) == 1 else torch.cat(captured), views)


@dataclass(frozen=True)
class Encoder:
    """The output of the vision tower, before the language model."""

    student_layer: str = ENCODER
    key: str = ENCODER

    def __str__(self) -> str:
        return "the encoder"

    def tap(self, adapter: PolicyAdapter) -> TapPoint:
        return adapter.encoder_tap()

    def width(self, adapter: PolicyAdapter) -> int:
        return adapter.encoder_dim()

    def tokens(self, adapter: PolicyAdapter, captured: Captured, views: Views) -> FeatureMap:
        return adapter.encoder_tokens(captured, views)


@dataclass(frozen=True)
class Attention:
    """Queries and keys of block ``student_layer``, counted from 1; computed from the input of that block."""

    student_layer: int

    def __str__(self) -> str:
        return f"the attention of block {self.student_layer}"

    @property
    def key(self) -> str:
        return f"attention:{self.student_layer}"

    def tap(self, adapter: PolicyAdapter) -> TapPoint:
        return adapter.tap(self.student_layer - 1)

    def width(self, adapter: PolicyAdapter) -> int:
        heads, channels = adapter.attention_heads(self.student_layer)
        return 2 * heads * channels

    def tokens(self, adapter: PolicyAdapter, captured: Captured, views: Views) -> FeatureMap:
        if any(is_sharded(module) for module in adapter.policy.modules()):
            raise ConfigError(
                "Queries and keys are computed outside the policy's blocks, where FSDP2 has scattered their weights.",
                "Train with DDP, or choose an objective that reads features.",
            )
        with own_rng(captured[0].device):  # LoRA on the projections may use dropout
            return adapter.attention_tokens(captured[0], self.student_layer, views)


TapSite: TypeAlias = Residual | Encoder | Attention


def site_of(student_layer: StudentLayer) -> Residual | Encoder:
    """The site of a configured student layer, for an objective that reads features."""
    return Encoder() if isinstance(student_layer, str) else Residual(student_layer)


class Taps:
    """All hooks of one policy.

    Args:
        adapter: Names the modules.
        sites: What the pairs read.
    """

    def __init__(self, adapter: PolicyAdapter, sites: Sequence[TapSite]) -> None:
        self.at = {site: Tap(str(site), site.tap(adapter)) for site in sites}
        self.recorders = {name: InputRecorder(name, point) for name, point in adapter.extra_hooks().items()}
        self._hooks = (*self.at.values(), *self.recorders.values())

    def run(
        self, forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[object, dict[TapSite, Captured], dict[str, Captured]]:
        """Run the policy's forward once.

        Returns:
            Its output; the tensors of each site, with gradient; the inputs of each extra hook, without.

        Raises:
            TapError: A hooked module did not run, or its input is no tensor of tokens.
        """
        for hook in self._hooks:
            hook.arm()
        try:
            output = forward(*args, **kwargs)
            captured = {site: tap.take() for site, tap in self.at.items()}
            inputs = {name: recorder.take() for name, recorder in self.recorders.items()}
        finally:
            # Before backward, where activation checkpointing fires the hooks again.
            for hook in self._hooks:
                hook.disarm()
        return output, captured, inputs

    def remove(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()


class Tap:
    """Keeps the first input of a module in each armed forward; the inputs of all calls, if the point says so.

    The hook is installed once and gated: one that is registered for each forward is silently dead under
    ``torch.compile`` after the first call. It is a bound method and no closure, so that ``deepcopy`` and pickle bind it
    to the copy.

    Args:
        name: Of the site, for errors.
        point: Which module.

    Attributes:
        fired: Calls in the last forward.
        without_gradient: Whether gradients were off in the last call.
    """

    def __init__(self, name: str, point: TapPoint) -> None:
        self.name, self.path, self.all_calls = name, point.path, point.all_calls
        self.armed = self.without_gradient = False
        self.fired = 0
        self.hidden: Tensor | None = None
        self._later: list[Any] = []
        self._extract = point.extract
        self._others = [type(self)(name, TapPoint(module, point.path)) for module in point.extra_modules]
        self._handle: RemovableHandle = point.module.register_forward_pre_hook(self.capture, with_kwargs=True)

    def capture(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """The hook itself. It returns None: torch would take anything else for the module's new input."""
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
        """End a forward and drop what was kept, so that no graph stays alive between steps."""
        self.armed, self.hidden, self._later = False, None, []
        for other in self._others:
            other.disarm()

    def take(self) -> Captured:
        """Return and drop the captured tensors, ``(b, n, d)`` or ``(b, d, h, w)`` each.

        Raises:
            TapError: The module did not run in this forward, or its input is no such tensor.
        """
        hidden, later, self.hidden, self._later = self.hidden, self._later, None, []
        if hidden is None:
            raise TapError(
                f"The tap at {self.name} ({self.path}, input) did not fire during forward.",
                "The policy's forward does not call this module: check the framework's version against the adapter's. "
                "If its blocks were compiled one by one, torch reuses another block's graph, which has no tap: compile "
                "the whole policy, or set torch._dynamo.config.skip_nnmodule_hook_guards = False.",
            )
        for state in (hidden, *later):
            if not isinstance(state, Tensor) or state.ndim not in (3, 4):
                found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
                raise TapError(
                    f"The tap at {self.name} ({self.path}) caught {found}, expected (b, n, d) or a map (b, d, h, w)."
                )
        return (hidden, *later, *(state for other in self._others for state in other.take()))

    def remove(self) -> None:
        """Remove the hook."""
        self.disarm()
        for tap in (self, *self._others):
            tap._handle.remove()


class InputRecorder(Tap):
    """Keeps the first input of every call, detached, or what the point extracts from it, of any type."""

    def capture(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self.armed:
            value = args[0] if args else next(iter(kwargs.values()))
            self._later.append(value.detach() if self._extract is None else self._extract(module, value))

    def take(self) -> tuple[Any, ...]:
        """Return and drop what was kept, in the order of the calls.

        Raises:
            TapError: The module did not run in this forward.
        """
        inputs, self._later = tuple(self._later), []
        if not inputs:
            raise TapError(
                f"{self.path} did not run during forward, so the policy's images are not known.",
                "The policy's forward does not call this module: check the framework's version against the adapter's.",
            )
        return inputs
