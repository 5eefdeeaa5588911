"""The positions of the visual tokens in the tapped sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.policies.base import ForwardCall
from sfkit.policies.generic.options import GenericOptions, ImageTokens, Span
from sfkit.policies.generic.paths import describe, find_value
from sfkit.views.types import FeatureMap, Views


def batch_positions(call: ForwardCall, options: GenericOptions, present: Tensor) -> Tensor | None:
    """Positions ``(b, v * gh * gw)`` that depend on the batch: of image tokens, or by a function. None for spans.

    Where a policy writes no tokens for absent views, their positions are -1.

    Args:
        call: The call of the policy's forward.
        options: Tokens and grid.
        present: ``(b, v)`` bool: which views exist.

    Raises:
        ShapeError: A sample has too few or too many image tokens, or the function returned another shape.
    """
    tokens = options.tokens
    if isinstance(tokens, ImageTokens):
        ids = find_value(call.arguments, tokens.where, "tokens.where")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise ShapeError(f"tokens.where={tokens.where!r} is a {describe(ids)}, expected token ids (b, n).")
        return _of_image_tokens(ids == tokens.id, options, present, tokens)
    return _given(tokens(call), options, len(present)) if callable(tokens) else None


def _of_image_tokens(matches: Tensor, options: GenericOptions, present: Tensor, tokens: ImageTokens) -> Tensor:
    """Positions ``(b, v * gh * gw)`` from ``(b, n)`` bool, True at image tokens, and ``(b, v)`` present views."""
    views, rows, columns = options.grid
    each = rows * columns
    counts = matches.sum(1)
    there = present.to(matches.device)
    everything, only_present = counts == views * each, counts == there.sum(1) * each
    if not bool((everything | only_present).all()):
        raise ShapeError(
            f"Samples hold {sorted(set(counts.tolist()))} image tokens (id {tokens.id} in {tokens.where!r}), but "
            f"{views} views of {rows}x{columns} tokens are {views * each}.",
            "Set grid, and the id of the image token (model.config.image_token_id). A truncated text loses some.",
        )
    # The n-th image token is the n-th of the views that have tokens at all.
    has_tokens = (there | everything.unsqueeze(1)).repeat_interleave(each, 1)
    # Stable, so that the image tokens keep their order in the sequence.
    order = matches.int().argsort(dim=1, descending=True, stable=True)
    rank = has_tokens.cumsum(1).sub(1).clamp(0, order.shape[1] - 1)
    return torch.where(has_tokens, order.gather(1, rank), -1)


def _given(positions: object, options: GenericOptions, samples: int) -> Tensor:
    views, rows, columns = options.grid
    shape = (samples, views * rows * columns)
    if isinstance(positions, Tensor) and positions.ndim == 1:
        positions = positions.expand(samples, -1)
    if not isinstance(positions, Tensor) or tuple(positions.shape) != shape or positions.is_floating_point():
        raise ShapeError(
            f"The function tokens returned {describe(positions)}, expected integer positions {shape}.",
            "Return the position of each visual token, view by view and row by row; -1 for one that is not there.",
        )
    return positions.long()


def cut(hidden: Tensor, options: GenericOptions, positions: Tensor | None, views: Views) -> FeatureMap:
    """The visual tokens ``(b, v, gh, gw, d)`` of a hidden state ``(b, n, d)``.

    Raises:
        ShapeError: The sequence is too short, or not the one that the positions refer to.
    """
    mask = views.token_mask(options.grid[1:])
    if positions is None:
        tokens = torch.cat([_span(hidden, span) for span in options.spans], 1)
    else:
        if len(positions) != len(hidden) or int(positions.max()) >= hidden.shape[1]:
            raise ShapeError(
                f"{len(positions)} samples have visual tokens up to position {int(positions.max())}, but the tapped "
                f"sequence is {tuple(hidden.shape)}.",
                "The decoder reads another sequence than the token ids: use Span, or a function of positions.",
            )
        index = positions.clamp(min=0).to(hidden.device)
        tokens = hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        mask = mask & (positions >= 0).reshape(mask.shape).to(mask.device)
    return FeatureMap(tokens.reshape(len(hidden), *options.grid, -1), mask)


def _span(hidden: Tensor, span: Span) -> Tensor:
    """``(b, n, d)`` to ``(b, span.length, d)``."""
    start = span.start if span.start >= 0 else hidden.shape[1] + span.start
    if start < 0 or start + span.length > hidden.shape[1]:
        raise ShapeError(
            f"{span} leads beyond the tapped sequence of {hidden.shape[1]} tokens.",
            "Correct the span, or the grid; `sfkit inspect` finds the visual tokens by changing the image.",
        )
    return hidden[:, start : start + span.length]
