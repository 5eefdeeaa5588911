"""What is said of steps that align nothing, or not as they were asked to."""

from __future__ import annotations

NOTHING_VALID = (
    "No visual token of this batch could be aligned: all are masked, as padding, missing cameras or positions without "
    "a valid target (for the geometry teacher: depth of 0, NaN or out of range)."
)


def left_in_eval(policy: str) -> str:
    """Of a policy that runs with gradients and is not in training mode."""
    return (
        f"{policy} ran with gradients while in eval mode, so nothing is aligned. Call policy.train() before training "
        "(LeRobot's from_pretrained returns policies in eval mode), or use torch.no_grad() for evaluation."
    )


def nothing_to_balance(weight: float | str, ratio: float) -> str:
    """Of a balance that has measured nothing so far."""
    return (
        f'weight="{weight}" has nothing to balance: no action gradient was seen at the tapped tokens, so the weight '
        f"stays {ratio:g}. Choose a smaller student layer (after the last block, what is tapped may take no part in "
        "the action), or a fixed weight; inside a graph of torch.compile it cannot be measured."
    )
