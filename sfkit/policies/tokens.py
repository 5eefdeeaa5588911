"""What adapters share: how to cut visual tokens out of a sequence, and to arrange those of a vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.views.types import FeatureMap, Views


def cut(hidden: Tensor, start: int, count: int, shift: int = 0) -> Tensor:
    """``(b, n, d)`` to ``(b, count, d)``: the tokens from ``start`` on.

    Args:
        hidden: The sequence.
        start: Where the visual tokens begin.
        count: Number of visual tokens.
        shift: Places by which the cut is wrong on purpose, see :class:`sfkit.policies.base.AdapterOptions`.

    Raises:
        ShapeError: The sequence is too short.
    """
    begin = start + shift
    if begin + count > hidden.shape[1]:
        raise ShapeError(
            f"The sequence has {hidden.shape[1]} tokens, the visual ones are expected at {begin} to {begin + count}.",
            "A token_shift needs as many tokens behind the visual ones." if shift else "The adapter must be changed.",
        )
    return hidden[:, begin : begin + count]


def tower_tokens(states: Sequence[Tensor], views: Views, grid: tuple[int, int], before: int = 0) -> FeatureMap:
    """The output of a vision tower as ``(b, v, gh, gw, d)``.

    Args:
        states: One ``(b, n, d)`` for each view, in the order of the views, or a single ``(b * v, n, d)`` of all, the
            views of a sample side by side.
        views: What the adapter returned for this call.
        grid: The tower's rows and columns.
        before: Number of tokens of each view that come first and are no patch.

    Raises:
        ShapeError: There are other numbers of states, samples or tokens.
    """
    b, v = views.images.shape[:2]
    count = before + grid[0] * grid[1]
    shapes = [tuple(state.shape[:2]) for state in states]
    if shapes == [(b, count)] * v:
        stacked = torch.stack(list(states), 1)
    elif shapes == [(b * v, count)]:
        stacked = states[0].reshape(b, v, count, -1)
    else:
        raise ShapeError(
            f"The vision tower gave {shapes} (samples, tokens), expected {v} times {(b, count)} or once "
            f"{(b * v, count)}: {b} samples of {v} views of {grid[0]} x {grid[1]} patches.",
            "This version of the policy runs its tower in another way: the adapter must be changed.",
        )
    return FeatureMap(stacked[:, :, before:].reshape(b, v, *grid, -1), views.token_mask(grid))
