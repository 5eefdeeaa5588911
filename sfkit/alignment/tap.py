"""The tap: reads a hidden state in passing, once for each armed forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfkit.errors import TapError
from sfkit.policies.base import TapPoint


class Tap:
    """One persistent pre-hook that keeps the first input of a module while armed.

    It is installed once and gated by ``armed`` rather than registered for each forward: a hook that comes and goes is
    silently dead under ``torch.compile`` after the first call. It is a bound method rather than a closure, so that
    ``deepcopy`` and pickle rebind it to the copied tap. It keeps the first firing; activation checkpointing fires it
    again during backward, when it is disarmed.
    """

    def __init__(self, depth: int, point: TapPoint) -> None:
        self.depth = depth
        self.path = point.path
        self.armed = False
        self.fired = 0
        self.hidden: Tensor | None = None
        self._handle: RemovableHandle = point.module.register_forward_pre_hook(self.capture, with_kwargs=True)

    def capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook itself. It must return None, or torch would replace the module's input."""
        if self.armed:
            self.fired += 1
            if self.hidden is None:
                self.hidden = args[0] if args else next(iter(kwargs.values()))

    def arm(self) -> None:
        """Start a forward."""
        self.armed, self.fired, self.hidden = True, 0, None

    def disarm(self) -> None:
        """End a forward and forget what was kept: no graph stays alive between steps."""
        self.armed, self.hidden = False, None

    def take(self) -> Tensor:
        """Hand over the captured ``(b, n, d)`` tensor and forget it.

        Raises:
            TapError: The tap did not fire in this forward, or caught something that is not a 3-D tensor.
        """
        hidden, self.hidden = self.hidden, None
        if hidden is None:
            raise TapError(
                f"The tap at depth {self.depth} ({self.path}, input) did not fire during forward.",
                "The policy's forward does not call this module: check the framework's version against the adapter's. "
                "If its blocks were compiled one by one, torch reuses another block's graph, which has no tap: compile "
                "the whole policy, or set torch._dynamo.config.skip_nnmodule_hook_guards = False.",
            )
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            found = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise TapError(f"The tap at depth {self.depth} ({self.path}) caught {found}, expected (b, n, d).")
        return hidden

    def remove(self) -> None:
        """Take the hook off."""
        self.disarm()
        self._handle.remove()
