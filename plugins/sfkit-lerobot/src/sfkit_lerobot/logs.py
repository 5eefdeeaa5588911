"""Figures for LeRobot's log, kept on the device until the trainer shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfkit.policies.base import PolicyAdapter
from sfkit.views.geometry import on_device

_STAYS = "sf_grad_"


class LogWindow:
    """Means over a window of steps.

    LeRobot goes on showing what it has seen once, as 0 where it is not given: a figure that no step of a window has is
    NaN there. Gradients are measured at one step of many: their figures stay as they were measured last.

    Args:
        length: Steps in a window.
        done: Steps that were done before, so that windows end where the trainer's do.
    """

    def __init__(self, length: int = 1, done: int = 0) -> None:
        self.length = length
        self.steps = done
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._last: dict[str, float] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Note the figures of a step (0-d). NaN, as of a cosine without any token, does not count."""
        self.steps += 1
        for key, value in figures.items():
            known = ~value.isnan()
            self._sums[key] = self._sums.get(key, 0) + value.nan_to_num(0.0)
            self._counts[key] = self._counts.get(key, 0) + known

    def due(self) -> dict[str, float]:
        """Their means at the end of a window, which this then forgets; nothing in between."""
        if self.steps % self.length:
            return {}
        means = torch.stack([self._sums[key] / self._counts[key] for key in self._sums]).tolist()
        keys = list(self._sums)
        self._sums, self._counts = {}, {}
        absent = {key: value if key.startswith(_STAYS) else math.nan for key, value in self._last.items()}
        self._last = {**absent, **dict(zip(keys, means, strict=True))}
        return dict(self._last)

    def beside(self, output: Any, logs: Mapping[str, Tensor]) -> Any:
        """``(loss, logs)`` of a LeRobot policy with figures ``()`` beside LeRobot's own, when they are due."""
        if not logs:
            return output
        self.add({key: on_device(value.detach().float(), output[0].device) for key, value in logs.items()})
        return (output[0], {**(output[1] or {}), **self.due()}, *output[2:])


class LoggedLoss:
    """``with_loss`` of an adapter that was not written for LeRobot: what it returns, and the figures in LeRobot's log.

    Args:
        adapter: The adapter.
        window: Where the figures are kept until they are due.
    """

    def __init__(self, adapter: PolicyAdapter, window: LogWindow) -> None:
        self._with_loss = adapter.with_loss
        self._window = window

    def __call__(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """The output with another loss, ``()`` or ``(b,)``, and figures ``()`` beside LeRobot's own."""
        output = self._with_loss(output, loss, logs)
        return self._window.beside(output, logs) if isinstance(output, tuple) and len(output) > 1 else output


def log_every(adapter: PolicyAdapter, steps: int, first: int = 0) -> None:
    """Have an adapter log means over so many steps; see :meth:`sfkit_lerobot.LeRobotAdapter.log_every`.

    Args:
        adapter: The adapter of a wrapped policy of LeRobot, of whatever class.
        steps: As the trainer's ``log_freq``.
        first: Steps that the trainer has done before.
    """
    own: Any = adapter
    if hasattr(own, "log_every"):
        own.log_every(steps, first)
    else:
        own.with_loss = LoggedLoss(adapter, LogWindow(steps, first))
