"""Which positions of the tapped sequence hold the visual tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.policies.base import ForwardCall
from sfkit.policies.generic.options import GenericOptions, ImageTokens, Span
from sfkit.policies.generic.paths import describe, find_value
from sfkit.views.types import FeatureMap, Views


def batch_positions(call: ForwardCall, options: GenericOptions, present: Tensor) -> Tensor | None:
    """Positions ``(b, v * gh * gw)`` that depend on the batch: of image tokens, or by a function. None for spans.

    Where a policy writes no tokens for absent views, those are given position -1.

    Raises:
        ShapeError: A sample has too few or too many image tokens, or the function returned something else.
    """
    tokens = options.tokens
    if isinstance(tokens, ImageTokens):
        ids = find_value(call.arguments, tokens.where, "tokens.where")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise ShapeError(f"tokens.where={tokens.where!r} is a {describe(ids)}, expected token ids (b, n).")
        return _of_image_tokens(ids == tokens.id, options, present, tokens)
    if callable(tokens):
        return _given(tokens(call), options, len(present))
    return None


def _of_image_tokens(found: Tensor, options: GenericOptions, present: Tensor, tokens: ImageTokens) -> Tensor:
    views, rows, columns = options.grid
    each = rows * columns
    counts = found.sum(1)
    there = present.to(found.device)
    everything, only_present = counts == views * each, counts == there.sum(1) * each
    if not bool((everything | only_present).all()):
        raise ShapeError(
            f"Samples hold {sorted(set(counts.tolist()))} image tokens (id {tokens.id} in {tokens.where!r}), but "
            f"{views} views of {rows}x{columns} tokens are {views * each}.",
            "Set grid, and the id of the image token (model.config.image_token_id). A text that is cut off loses some.",
        )
    # The n-th image token is the n-th of the views that have tokens at all.
    has_tokens = (there | everything.unsqueeze(1)).repeat_interleave(each, 1)
    order = found.int().argsort(dim=1, descending=True, stable=True)
    rank = has_tokens.cumsum(1).sub(1).clamp(0, order.shape[1] - 1)
    return torch.where(has_tokens, order.gather(1, rank), -1)


def _given(positions: Any, options: GenericOptions, samples: int) -> Tensor:
    views, rows, columns = options.grid
    count = views * rows * columns
    if isinstance(positions, Tensor) and positions.ndim == 1:
        positions = positions.expand(samples, -1)
    if not isinstance(positions, Tensor) or tuple(positions.shape) != (samples, count) or positions.is_floating_point():
        raise ShapeError(
            f"The function tokens returned {describe(positions)}, expected integer positions ({samples}, {count}).",
            "Return the position of each visual token, view by view and row by row; -1 for one that is not there.",
        )
    return positions.long()


def cut(hidden: Tensor, options: GenericOptions, positions: Tensor | None, views: Views) -> FeatureMap:
    """The visual tokens of a hidden state ``(b, n, d)``, as a grid for each view.

    Raises:
        ShapeError: The sequence is too short, or not the one that the positions refer to.
    """
    mask = views.token_mask(options.grid[1:])
    if positions is None:
        found = torch.cat([_span(hidden, span) for span in _spans(options.tokens)], 1)
    else:
        if len(positions) != len(hidden) or int(positions.max()) >= hidden.shape[1]:
            raise ShapeError(
                f"Visual tokens were located up to position {int(positions.max())} of {len(positions)} samples, but "
                f"the tapped sequence is {tuple(hidden.shape)}.",
                "The tapped decoder reads another sequence than the token ids tell (a model that replaces one image "
                "token by many, or another stream): use Span, or a function that returns positions.",
            )
        there = positions >= 0
        index = positions.clamp(min=0).to(hidden.device)
        found = hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        mask = mask & there.reshape(mask.shape).to(mask.device)
    return FeatureMap(found.reshape(len(hidden), *options.grid, -1), mask)


def _spans(tokens: Any) -> tuple[Span, ...]:
    return (tokens,) if isinstance(tokens, Span) else tokens


def _span(hidden: Tensor, span: Span) -> Tensor:
    start = span.start if span.start >= 0 else hidden.shape[1] + span.start
    if start < 0 or start + span.length > hidden.shape[1]:
        raise ShapeError(
            f"{span} leads beyond the tapped sequence of {hidden.shape[1]} tokens.",
            "Correct the span, or the grid; `sfkit inspect` finds the visual tokens by changing the picture.",
        )
    return hidden[:, start : start + span.length]
