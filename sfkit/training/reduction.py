"""How the trainer reduces a loss of several values, seen from the gradient that comes back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def warn_if_sum_reduction(loss: Tensor, tell: Callable[[str], None]) -> None:
    """Say so where a loss for each element or sample is summed: the alignment loss then counts as often.

    A mean hands each of ``n`` values ``1/n`` of what the whole is given, a sum hands it all. Exactly 1 everywhere is
    thus the sign of a sum; one that is scaled or divided afterward cannot be told from a mean.

    Args:
        loss: What the trainer is given, of any shape.
        tell: Called in the backward pass with what there is to say.
    """
    count = loss.numel()  # the hook must not hold the loss, which holds the hook
    if count < 2 or not loss.requires_grad:
        return

    def look(gradient: Tensor) -> None:
        if bool((gradient == 1).all()):
            tell(
                f"the {count} values of the policy's loss are summed and not averaged, so both the action loss and "
                f"the alignment loss count {count} times. Use their mean, as the policy's own trainer does."
            )

    loss.register_hook(look)  # type: ignore[no-untyped-call]
