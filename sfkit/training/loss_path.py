"""How the alignment loss of one forward reaches what the training loop differentiates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfkit.config import AttachLoss
from sfkit.errors import ConfigError, LossError
from sfkit.policies.base import PolicyAdapter, add_per_sample
from sfkit.training.loss_scale import LossScale
from sfkit.training.pending_loss import Parameters, PendingLoss, inject, pending_losses
from sfkit.utils.runtime import trains_in_backward


class LossPath(Protocol):
    """One way, chosen for each forward by what it returned."""

    @property
    def loss(self) -> Tensor | None:
        """The loss in the output, if the loop reads it there; ``()``, ``(b,)`` or ``(b, ...)``."""

    def attach(self, output: object, term: Tensor, logs: Mapping[str, Tensor]) -> tuple[object, Tensor | None]:
        """Attach the weighted alignment loss ``(b,)``.

        Args:
            output: What forward returned.
            term: With gradient.
            logs: For the framework, where it has a place for them.

        Returns:
            The new output, and the loss in it, if there is one.

        Raises:
            LossError: Nothing in the output can carry it.
        """

    def keep_in_graph(self, output: object, zero: Callable[[Tensor], Tensor]) -> object:
        """``output``, unchanged in value, with the projectors in its graph.

        Args:
            output: What forward returned.
            zero: From a tensor ``(*)`` to 0 times the projectors, of the same shape, dtype and device.
        """


@dataclass(frozen=True)
class ReturnPath:
    """Adds to the loss that forward returns."""

    paths: LossPaths
    loss: Tensor

    def attach(self, output: object, term: Tensor, logs: Mapping[str, Tensor]) -> tuple[object, Tensor | None]:
        """Add ``(b,)`` terms to the loss."""
        self.paths.last = "returned"
        total = add_per_sample(self.loss, term)
        return self.paths.adapter.with_loss(output, total, logs), total

    def keep_in_graph(self, output: object, zero: Callable[[Tensor], Tensor]) -> object:
        if not self.loss.requires_grad:
            return output
        return self.paths.adapter.with_loss(output, self.loss + zero(self.loss), {})


@dataclass(frozen=True)
class ManualPath:
    """Waits for ``policy.spatial_forcing.add(loss)``, and notices a backward pass that comes without it."""

    paths: LossPaths
    loss: None = None

    def attach(self, output: object, term: Tensor, logs: Mapping[str, Tensor]) -> tuple[object, Tensor | None]:
        """Hang ``(b,)`` terms on the outputs."""
        paths, attached = self.paths, None
        if paths.attach_loss != "return":
            attached = inject(output, term, paths.expect(self.pending(term.device)))
        if attached is None:
            raise LossError(
                f"{paths.policy} returned no loss ({type(output).__name__}) to which the alignment loss can be added.",
                "Call it as in training, with targets in the batch.",
            )
        paths.last = "pending"
        return attached, None

    def pending(self, device: torch.device) -> PendingLoss:
        """The state of a loss on ``device``. Backward sends it no gradient, but notices that it was forgotten."""
        return PendingLoss()

    def keep_in_graph(self, output: object, zero: Callable[[Tensor], Tensor]) -> object:
        attached = inject(output, zero, PendingLoss())
        return output if attached is None else attached


@dataclass(frozen=True)
class BackwardPath(ManualPath):
    """Injects the gradient of the alignment loss into the loop's backward pass, through forward's outputs."""

    def pending(self, device: torch.device) -> PendingLoss:
        scale = self.paths.scale
        scale.check_forward(device.type)
        return PendingLoss(gradient=lambda: scale.gradient(device))


#: Why ``add`` has nothing to add although the last forward was aligned.
_NOTHING_PENDING = {
    "returned": (
        "The alignment loss is already in the loss that forward returned: added again, it would count twice.",
        "Drop add(loss); or wrap with attach_loss='manual' if the loop's loss is not what forward returns.",
    ),
    "pending": (
        "add(loss) was given a loss that was not computed, with gradient, from what the last forward returned.",
        "Give it the loss of that forward, before backward.",
    ),
}


class LossPaths:
    """Chooses the path of each forward, and keeps track of the losses that are not yet in a backward pass.

    - ``"return"``: the loss that forward returns.
    - ``"backward"``: through the outputs of forward.
    - ``"manual"``: by ``loss = policy.spatial_forcing.add(loss)`` alone.
    - ``"auto"``: the first where the adapter finds the loss that the loop uses; the second where the adapter knows that
      the loop computes it from the outputs, unless ``add`` is called; the third where forward returned no loss.

    Args:
        adapter: Of the policy.
        attach_loss: One of these.
        scale: The factors that the loop applies to its loss.
        parameters: Of the projectors; whether gradients are accumulated shows at the first that is trained.

    Raises:
        ConfigError: ``"return"``, and the loop does not read the loss there (fault 13).
    """

    def __init__(
        self, adapter: PolicyAdapter, attach_loss: AttachLoss, scale: LossScale, parameters: Parameters
    ) -> None:
        if attach_loss == "return" and adapter.loss_outside:
            raise ConfigError(
                f"attach_loss='return' would train nothing: according to the adapter {adapter.name!r}, the training "
                "loop computes its loss from the outputs of forward, and never reads a loss in them.",
                "Leave attach_loss out, or use attach_loss='backward' or attach_loss='manual'.",
            )
        self.adapter, self.attach_loss, self.scale, self._parameters = adapter, attach_loss, scale, parameters
        #: Whether the loop reads the loss that forward returns.
        self.reads_loss = attach_loss in ("auto", "return") and not adapter.loss_outside
        self.policy = type(adapter.policy).__name__
        self.last: Literal["unaligned", "returned", "pending"] = "unaligned"
        self._missed: PendingLoss | None = None
        self._pending: weakref.WeakSet[PendingLoss] = weakref.WeakSet()
        self._manual = attach_loss == "manual"

    def __reduce__(self) -> tuple[object, ...]:
        # A copy of the policy is not in the middle of a step: it starts anew.
        return LossPaths, (self.adapter, self.attach_loss, self.scale, self._parameters)

    def start_step(self) -> None:
        """Begin a training forward.

        Raises:
            LossError: The loop trained on an earlier forward without its alignment loss.
        """
        missed, self._missed = self._missed, None
        if missed is not None and not missed.added:
            raise LossError(
                f"The training loop computes its loss from what {self.policy} returned and has run a backward pass, "
                "and the alignment loss was never added: nothing aligns.",
                "Write `loss = policy.spatial_forcing.add(loss)` before backward, or wrap with attach_loss='backward'.",
            )
        self.last = "unaligned"

    def of(self, output: object) -> LossPath:
        """The path for what forward returned."""
        loss = self.adapter.loss(output) if self.reads_loss else None
        if loss is not None:
            return ReturnPath(self, loss)
        if self.attach_loss == "backward" or (self.attach_loss == "auto" and self.adapter.loss_outside):
            return BackwardPath(self)
        return ManualPath(self)

    def expect(self, pending: PendingLoss) -> PendingLoss:
        """Remember a loss until it is used."""
        if self._manual and trains_in_backward():
            raise LossError(
                f"{self.policy} is called within a reentrant activation checkpoint, which runs it without gradient "
                "first: add(loss) had nothing to add then.",
                "Checkpoint with use_reentrant=False, or wrap with attach_loss='backward' and leave add(loss) out.",
            )
        pending.arrived, pending.leaves = self._arrived, self.adapter.policy.parameters
        self._pending.add(pending)
        return pending

    def _arrived(self, pending: PendingLoss) -> None:
        """A backward pass came by a loss for the first time."""
        if not pending.added and pending.gradient is None:
            self._missed = pending
        elif not pending.added:
            self.scale.check_backward(next((one for one in self._parameters() if one.requires_grad), None))

    def add(self, loss: Tensor) -> Tensor:
        """See :meth:`sfkit.SpatialForcing.add`; ``loss`` is ``()``, ``(b,)`` or ``(b, ...)``."""
        self._manual = True
        found = self._behind(loss)
        if not found:
            if self.last in _NOTHING_PENDING:
                raise LossError(*_NOTHING_PENDING[self.last])
            return loss
        if self.attach_loss == "backward":
            raise LossError(
                "add(loss) was called beside attach_loss='backward', which injects the alignment loss in backward: "
                "together they would count it twice.",
                "Drop one of the two: add(loss) is always exact, and needs attach_loss='manual'.",
            )
        if all(pending.added for pending, _ in found):
            raise LossError(
                "add(loss) was called twice for the same forward.", "Call it once, on the loss that backward is run on."
            )
        for pending, term in found:
            if pending.spent or pending.passed:
                raise LossError(
                    "add(loss) was called after a backward pass through the same forward.",
                    "Call it before the first backward pass of the step.",
                )
            if not pending.added:
                pending.added = True
                loss = add_per_sample(loss, term)
        return loss

    def _behind(self, loss: Tensor) -> list[tuple[PendingLoss, Tensor]]:
        """This policy's pending losses behind ``loss``, ``()`` or ``(b, ...)``; another policy's may be there too."""
        found = [(pending, term) for pending, term in pending_losses(loss) if pending in self._pending]
        waiting = {one for one in self._pending if not (one.added or one.passed or one.spent)}
        if waiting <= {pending for pending, _ in found}:
            return found
        return [(pending, term) for pending, term in pending_losses(loss, behind=True) if pending in self._pending]
