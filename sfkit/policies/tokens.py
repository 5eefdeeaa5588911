"""Cutting visual tokens out of what a tap has read: what adapters share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.views.types import FeatureMap, Views


def cut(hidden: Tensor, start: int, count: int, shift: int = 0) -> Tensor:
    """``count`` tokens of ``(b, n, d)`` from ``start`` on.

    Args:
        hidden: The sequence.
        start: Where the visual tokens begin.
        count: How many there are.
        shift: Places by which to miss them on purpose, see :class:`sfkit.policies.base.AdapterOptions`.

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
    """What a vision tower gave, as a grid for each view.

    Args:
        states: One ``(b, n, d)`` for each view, in the order of the views, or a single ``(b * v, n, d)`` of all, the
            views of a sample side by side.
        views: Of this call.
        grid: The tower's rows and columns.
        before: Tokens of each view that are no patch and come first.

    Raises:
        ShapeError: There are other numbers of states, samples or tokens.
    """
    b, v = views.images.shape[:2]
    wanted = before + grid[0] * grid[1]
    shapes = [tuple(state.shape[:2]) for state in states]
    if shapes == [(b, wanted)] * v:
        stacked = torch.stack(list(states), 1)
    elif shapes == [(b * v, wanted)]:
        stacked = states[0].reshape(b, v, wanted, -1)
    else:
        raise ShapeError(
            f"The vision tower gave {shapes} (samples, tokens), expected {v} times {(b, wanted)} or once "
            f"{(b * v, wanted)}: {b} samples of {v} views of {grid[0]} x {grid[1]} patches.",
            "This version of the policy runs its tower in another way: the adapter must be changed.",
        )
    tokens = stacked[:, :, before:].reshape(b, v, *grid, -1)
    return FeatureMap(tokens, views.token_mask(grid))
