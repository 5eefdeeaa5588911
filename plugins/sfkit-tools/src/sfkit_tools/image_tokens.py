"""Find the visual tokens: change the images, and find the positions of the sequence that change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sfkit.policies.generic.options import ImageTokens, Span
from sfkit_tools.blocks import Candidate, listening
from sfkit_tools.calls import Call
from sfkit_tools.image_inputs import Box, ImageReading

#: The changed box of an image is at these shares of height and width, and this share of the side long.
_PLACES = (0.03, 0.47, 0.94)
_BOX = 1 / 16
#: Possible numbers of class and register tokens before the patches of a view.
_EXTRAS = (0, 1, 2, 4, 5)
_MOST_OBLONG = 2.5


@dataclass(frozen=True)
class Found:
    """The visual tokens of one stack.

    Attributes:
        candidate: The stack.
        images: The reading of the batch that explains them.
        index: Index of that reading.
        positions: ``(b, v, n)``: positions that change when a whole view changes, in order.
        length: Length of the sequence.
        extras: Number of tokens before the patches of each view.
        cells: Rows and columns.
        hits: Share of the changed patches whose own token moved most.
    """

    candidate: Candidate
    images: ImageReading
    index: int
    positions: Tensor
    length: int
    extras: int = 0
    cells: tuple[int, int] = (1, 1)
    hits: float = 0.0

    @property
    def patches(self) -> Tensor:
        """``(b, v * rows * columns)``: positions of the patches, view after view, row-major."""
        return self.positions[:, :, self.extras :].flatten(1)


class Prober:
    """Runs the policy on changed images, and compares the inputs of the first block of each stack."""

    def __init__(self, model: nn.Module, call: Call, candidates: Sequence[Candidate]) -> None:
        self._model, self._call = model, call
        self._taps = {c.path: c.taps[0][0] for c in candidates if c.taps[0] is not None}
        self._before = self._run({})
        again = self._run({})
        self._noise = {path: _distance(again[path], self._before[path]) for path in self._before}

    @torch.no_grad()
    def _run(self, changed: Mapping[int, object]) -> dict[str, Tensor]:
        with listening(self._taps.values()) as log:
            self._call.run(self._model, changed)
        found = {path: log.first(module) for path, module in self._taps.items()}
        return {path: state.detach().float() for path, state in found.items() if state is not None and state.ndim == 3}

    def moved(self, changed: Mapping[int, object]) -> dict[str, Tensor]:
        """Distance that each position moved, ``(b, n)`` for each stack; 0 within the noise of two equal runs."""
        after = self._run(changed)
        found = {}
        for path, before in self._before.items():
            if path not in after or after[path].shape != before.shape:
                continue
            far = _distance(after[path], before)
            least = 1e-5 * before.norm(dim=-1).mean() + 2 * self._noise[path]
            found[path] = torch.where(far > least, far, 0.0)
        return found


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of each token, ``(b, n, d)`` to ``(b, n)``."""
    far: Tensor = torch.linalg.vector_norm(first - second, dim=-1)
    return far


def find_tokens(
    prober: Prober, candidates: Sequence[Candidate], readings: Sequence[ImageReading], samples: int
) -> Iterator[Found]:
    """The visual tokens for each reading of the images and each stack that depends on them."""
    for index, reading in enumerate(readings):
        whole = [prober.moved(reading.changed(view)) for view in range(reading.views)]
        located = {c.path: _located([move.get(c.path) for move in whole], samples) for c in candidates}
        if all(positions is None for positions in located.values()):
            continue
        boxes = list(_boxes(reading.raw().shape[-2:]))
        moves = [[prober.moved(reading.changed(view, box)) for box in boxes] for view in range(reading.views)]
        for candidate in candidates:
            positions = located[candidate.path]
            if positions is None:
                continue
            order = _order(reading, positions)
            length = whole[0][candidate.path].shape[1]
            found = Found(candidate, reading.reordered(order), index, positions[:, order], length)
            yield _with_grid(found, [[move[candidate.path] for move in moves[view]] for view in order], boxes)


def _order(reading: ImageReading, positions: Tensor) -> list[int]:
    """Views in the order of their tokens, from positions ``(b, v, n)``.

    Only separate tensors for each camera can be reordered; the batch may hold them in any order.
    """
    order = positions[0, :, 0].argsort().tolist()
    return order if isinstance(reading.given, tuple) else list(range(reading.views))


def _located(moves: Sequence[Tensor | None], samples: int) -> Tensor | None:
    """``(b, v, n)`` positions that each view moves, from distances ``(b, length)`` of each view.

    None where views move different numbers of positions, or share one.
    """
    rows = []
    for move in moves:
        if move is None or len(move) != samples:
            return None
        hit = move > 0
        counts = hit.sum(1)
        if int(counts.min()) == 0 or int(counts.min()) != int(counts.max()):
            return None
        rows.append(hit.nonzero()[:, 1].reshape(samples, -1))
    if len({row.shape[1] for row in rows}) != 1:
        return None
    positions = torch.stack(rows, 1)
    flat = positions.flatten(1).sort(1).values
    return None if bool((flat[:, 1:] == flat[:, :-1]).any()) else positions


def _boxes(size: Sequence[int]) -> Iterator[Box]:
    for y in _PLACES:
        for x in _PLACES:
            yield _side(y, size[0]), _side(x, size[1])


def _side(place: float, pixels: int) -> slice:
    length = max(2, round(_BOX * pixels))
    start = min(pixels - length, round(place * pixels))
    return slice(start, start + length)


def _with_grid(found: Found, moves: Sequence[Sequence[Tensor]], boxes: Sequence[Box]) -> Found:
    """Add the grid and the number of extra tokens for which the token of a changed patch moves most.

    Args:
        found: The tokens without a grid.
        moves: Distances ``(b, length)`` of each position, for each view and each box.
        boxes: The boxes, in pixels.
    """
    height, width = found.images.raw().shape[-2:]
    ranked = []
    for extras in _EXTRAS:
        for cells in _grids(found.positions.shape[2] - extras, (height, width), found.images.cells):
            fractions = [
                (rows.start / height * cells[0], rows.stop / height * cells[0],
                 columns.start / width * cells[1], columns.stop / width * cells[1])
                for rows, columns in boxes
            ]  # fmt: skip
            hits = [
                _hit(move.gather(1, found.positions[:, view])[:, extras:].mean(0), cells[1], box)
                for view, row in enumerate(moves)
                for move, box in zip(row, fractions, strict=True)
            ]
            oblong = abs(math.log(cells[0] / cells[1]) - math.log(height / width))
            ranked.append((-sum(hits) / len(hits), oblong, extras, cells))
    if not ranked:
        return replace(found, cells=(1, found.positions.shape[2]))
    missed, _, extras, cells = min(ranked)
    return replace(found, extras=extras, cells=cells, hits=-missed)


def _grids(count: int, size: tuple[int, int], known: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    """Rows and columns of ``count`` tokens whose patches are not too oblong."""
    for rows in range(1, count + 1):
        cells = (rows, count // rows)
        oblong = size[0] / size[1] * cells[1] / rows
        if rows * cells[1] == count and known in (None, cells) and 1 / _MOST_OBLONG <= oblong <= _MOST_OBLONG:
            yield cells


def _hit(moved: Tensor, columns: int, box: tuple[float, float, float, float]) -> bool:
    """Whether the changed box touches the cell of the token that moved most.

    ``moved`` is ``(rows * columns,)``; the box is in cells: top, bottom, left, right.
    """
    most = int(moved.argmax())
    row, column = most // columns, most % columns
    return float(moved[most]) > 0 and row < box[1] and box[0] < row + 1 and column < box[3] and box[2] < column + 1


# ------------------------------------------------------------------------------------------------- as options


TokenOption: TypeAlias = "ImageTokens | Span | tuple[Span, ...]"


def as_tokens(found: Found, ids: Mapping[str, Tensor]) -> tuple[TokenOption | None, str]:
    """The option ``tokens`` and a remark; None where neither an image token nor spans give the positions.

    Args:
        found: The positions.
        ids: Integer tensors ``(b, n)`` of the batch by their paths.
    """
    if not found.extras:
        for path, values in ids.items():
            token = _image_token(values, found)
            if token is not None:
                return (ImageTokens(token) if path == "input_ids" else ImageTokens(token, path)), ""
    patches = found.patches
    if not bool((patches == patches[0]).all()):
        return None, "Their positions differ from sample to sample, and match no token id of the batch."
    spans = _runs(patches[0].tolist())
    remark = f"The positions are those of this batch, whose sequence is {found.length} long."
    return (spans[0] if len(spans) == 1 else tuple(spans)), remark


def _image_token(values: Tensor, found: Found) -> int | None:
    """The id that stands at the patches and nowhere else in ``(b, n)`` token ids; None if there is none."""
    # The ids must reach as far as the patches; the sequence may continue after them, with tokens for the action.
    if int(found.patches.max()) >= values.shape[1] or len(values) != len(found.patches):
        return None
    patches = found.patches.sort(1).values.to(values.device)
    if not torch.equal(patches, found.patches.to(values.device)):
        return None  # an image token needs the views one after another
    token = int(values[0, patches[0, 0]])
    wanted = torch.zeros_like(values, dtype=torch.bool).scatter_(1, patches, value=True)
    return token if torch.equal(values == token, wanted) else None


def _runs(positions: Sequence[int]) -> list[Span]:
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][0] + runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([position, 1])
    return [Span(start, length) for start, length in runs]
