"""Joining one forward's alignment loss, in whichever way its training loop will notice."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from sfkit.config import AttachLoss
from sfkit.errors import ConfigError, LossError
from sfkit.policies.base import PolicyAdapter, add_per_sample
from sfkit.training.loss_scale import StepScale
from sfkit.training.pending_loss import PendingLoss, carry, pending_losses
from sfkit.utils.replay import trains_in_backward


class Joiner:
    """How the alignment loss of one policy is joined.

    - ``"return"``: to the loss in what forward returns.
    - ``"backward"``: it rides on the differentiable outputs into the loop's own backward pass.
    - ``"manual"``: by ``loss = policy.spatial_forcing.add(loss)`` alone.
    - ``"auto"``: the first where the adapter finds the loss that the loop uses; the second where the adapter knows that
      the loop computes it from the outputs, unless ``add`` is called; the third where forward returned no loss.

    Args:
        adapter: Of the policy.
        attach_loss: One of these.
        scale: What is known of the loop's factors.
        witness: Gives a parameter that the alignment loss trains, to see whether gradients are accumulated.

    Raises:
        ConfigError: ``"return"``, and the loop does not read the loss there (fault 13).
    """

    def __init__(
        self, adapter: PolicyAdapter, attach_loss: AttachLoss, scale: StepScale, witness: Callable[[], Tensor | None]
    ) -> None:
        if attach_loss == "return" and adapter.loss_outside:
            raise ConfigError(
                f"attach_loss='return' would train nothing: according to the adapter {adapter.name!r}, the training "
                "loop computes its loss from the outputs of forward, and never reads a loss in them.",
                "Leave attach_loss out, or use attach_loss='backward' or attach_loss='manual'.",
            )
        self.adapter = adapter
        self.attach_loss = attach_loss
        self.scale = scale
        self.witness = witness
        self._forward: Literal["unaligned", "joined", "riding"] = "unaligned"
        self._missed: PendingLoss | None = None
        self._rides: weakref.WeakSet[PendingLoss] = weakref.WeakSet()
        self._adds = attach_loss == "manual"

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the policy is not in the middle of a step.
        return {**self.__dict__, "_forward": "unaligned", "_missed": None, "_rides": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rides = weakref.WeakSet()  # which cannot be pickled

    def loss_in(self, output: Any) -> Tensor | None:
        """The loss in what forward returned, if that is where the loop takes it from."""
        inside = self.attach_loss in ("auto", "return") and not self.adapter.loss_outside
        return self.adapter.loss(output) if inside else None

    def begin(self) -> None:
        """Begin a training forward.

        Raises:
            LossError: The loop trained on an earlier forward without its alignment loss.
        """
        missed, self._missed = self._missed, None
        if missed is not None and not missed.added:
            raise LossError(
                f"The training loop computes its loss from what {type(self.adapter.policy).__name__} returned and has "
                "run a backward pass, and the alignment loss was never added: nothing aligns.",
                "Write `loss = policy.spatial_forcing.add(loss)` before backward, or wrap with attach_loss='backward'.",
            )
        self._forward = "unaligned"

    def into(self, output: Any, loss: Tensor | None, term: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """``output`` with the alignment loss on board.

        Args:
            output: What forward returned.
            loss: :meth:`loss_in` of it.
            term: The weighted alignment loss ``(b,)``, with gradient.
            logs: For the framework, where it has a place for them.

        Raises:
            LossError: There is no loss to join, and nothing that could carry.
        """
        if loss is not None:
            self._forward = "joined"
            return self.adapter.with_loss(output, add_per_sample(loss, term), logs)
        ride = self._ride(term) if self.attach_loss != "return" else None
        if ride is not None:
            ride.leaves = self.adapter.policy.parameters
        carried = None if ride is None else carry(output, term, ride)
        if carried is None:
            raise LossError(
                f"{type(self.adapter.policy).__name__} returned no loss ({type(output).__name__}), "
                "so the alignment loss has nothing to join.",
                "Call it as in training, with targets in the batch.",
            )
        self._forward = "riding"
        return carried

    def _ride(self, term: Tensor) -> PendingLoss:
        """What is to become of the alignment of this forward."""
        if self._adds and trains_in_backward():
            raise LossError(
                f"{type(self.adapter.policy).__name__} is called within a reentrant activation checkpoint, which runs "
                "it without gradient first: add(loss) had nothing to add, and now, in backward, is over.",
                "Checkpoint with use_reentrant=False, or wrap with attach_loss='backward' and leave add(loss) out.",
            )
        if self.attach_loss == "backward" or (self.attach_loss == "auto" and self.adapter.loss_outside):
            device = term.device
            self.scale.look_at_forward(device.type)
            ride = PendingLoss(gradient=lambda: self.scale.gradient(device), arrived=self._carried)
        else:
            ride = PendingLoss(arrived=self._miss)
        self._rides.add(ride)
        return ride

    def _miss(self, ride: PendingLoss) -> None:
        if not ride.added:
            self._missed = ride

    def _carried(self, ride: PendingLoss) -> None:
        if not ride.added:
            self.scale.look_at_backward(self.witness())

    def anchor(self, output: Any, zero: Callable[[Tensor], Tensor]) -> Any:
        """``output`` with the projector in its graph, and nothing changed by it.

        Args:
            output: What forward returned.
            zero: Gives 0 times the projector, on the device and in the dtype of a tensor.
        """
        loss = self.loss_in(output)
        if loss is not None:
            return self.adapter.with_loss(output, loss + zero(loss), {}) if loss.requires_grad else output
        carried = carry(output, zero, PendingLoss())
        return output if carried is None else carried

    def add(self, loss: Tensor) -> Tensor:
        """See :meth:`sfkit.SpatialForcing.add`."""
        self._adds = True
        rides = self._rides_behind(loss)
        if not rides:
            self._explain_no_ride()
            return loss
        if self.attach_loss == "backward":
            raise LossError(
                "add(loss) was called, and attach_loss='backward' brings the alignment loss into backward by itself: "
                "together they would count it twice.",
                "Drop one of the two. add(loss) is exact whatever the loop does with its loss: wrap with "
                "attach_loss='manual'.",
            )
        if all(ride.added for ride, _ in rides):
            raise LossError(
                "add(loss) was called twice for the same forward.", "Call it once, on the loss that backward is run on."
            )
        for ride, passenger in rides:
            if ride.spent or ride.passed:
                raise LossError(
                    "add(loss) was called after a backward pass through the same forward.",
                    "Call it before the first backward pass of the step.",
                )
            if not ride.added:
                ride.added = True
                loss = add_per_sample(loss, passenger)
        return loss

    def _rides_behind(self, loss: Tensor) -> list[tuple[PendingLoss, Tensor]]:
        """This policy's rides that ``loss`` was computed from; another policy may stand behind it as well."""
        found = [(ride, passenger) for ride, passenger in pending_losses(loss) if ride in self._rides]
        waiting = {ride for ride in self._rides if not (ride.added or ride.passed or ride.spent)}
        if waiting <= {ride for ride, _ in found}:
            return found
        return [(ride, passenger) for ride, passenger in pending_losses(loss, behind=True) if ride in self._rides]

    def _explain_no_ride(self) -> None:
        """Raise where the last forward was aligned, and ``add`` would silently add nothing."""
        if self._forward == "joined":
            raise LossError(
                f"The alignment loss is already in the loss that {type(self.adapter.policy).__name__} returned: added "
                "again, it would count twice.",
                "Drop add(loss); or wrap with attach_loss='manual' if the loop's loss is not what forward returns.",
            )
        if self._forward == "riding":
            raise LossError(
                "add(loss) was given a loss that was not computed, with gradient, from what the policy's last forward "
                "returned.",
                "Give it the loss of that forward, before backward.",
            )
