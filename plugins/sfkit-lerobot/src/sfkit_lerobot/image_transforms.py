"""Whether a dataset's image transforms move pixels, judged by what they do to an image and not by their names."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfkit.errors import ConfigError

Transform = Callable[[Tensor], object]

#: Draws for each type of pixels: a transform with p=0.1 stays unseen in all of them once in 850 times.
_DRAWS = 64
#: Side of a marked square in pixels: a block of JPEG. Small images have smaller ones.
_SIDE = 8
_MARKS = 12
#: Pixels by which the center of a mark may be off, as compression and blur at a border do.
_TOLERANCE = 1.5
#: The plastic number: its powers spread points evenly and in no symmetric pattern (Roberts' R2 sequence).
_PLASTIC = 1.32471795724


class _UndecidableError(Exception):
    """What a transform does cannot be judged."""


def refuse_moving(transform: Transform | None, size: tuple[int, int]) -> None:
    """Refuse a transform that moves pixels: depth, calibration and poses would not move with them.

    Changes of color, noise, blur, compression and erased regions pass. The random state is left as it was.

    Args:
        transform: Of an image ``(3, h, w)``, uint8 or float in [0, 1]; None for no transform.
        size: Height and width of the dataset's images.

    Raises:
        ConfigError: It moves pixels in one of 64 draws, or that cannot be decided.
    """
    if transform is None:
        return
    failures = []
    with _random_state_kept():
        for dtype in (torch.float32, torch.uint8):
            try:
                moved = _move(transform, size, dtype)
            except _UndecidableError as error:
                failures.append(str(error))
                continue
            if moved > _tolerance(size):
                raise ConfigError(
                    f"The dataset's image_transforms move pixels (by {moved:.1f} of them, in one of {_DRAWS} draws), "
                    "and depth and calibration would stay.",
                    "Take them out (LeRobot: --dataset.image_transforms.tfs without 'affine'); changes of color are "
                    "fine.",
                )
    if len(failures) == 2:
        raise ConfigError(
            f"The dataset's image_transforms cannot be judged: {failures[0]}. If they move pixels, depth and "
            "calibration would stay.",
            "Give a function from one image (3, h, w) to another of the same size, random by torch, numpy or random.",
        )


def _move(transform: Transform, size: tuple[int, int], dtype: torch.dtype) -> float:
    """Pixels by which a mark moves in the first draw in which one does; infinite where the image changes its size."""
    probe = _Probe.of(size)
    # A transform may have a generator of its own: both images get the same copy of it, and the next draw another one.
    own = copy.deepcopy(transform)
    seen = False
    for draw in range(_DRAWS):
        before = copy.deepcopy(own)
        marked = _applied(copy.deepcopy(before), probe.marked, dtype, draw)
        plain = _applied(own, probe.plain, dtype, draw)
        if not marked.shape[-2:] == plain.shape[-2:] == probe.plain.shape[-2:]:
            return float("inf")
        found = probe.offset((marked - plain).abs().flatten(0, -3).sum(0))
        seen = seen or found is not None
        if found is not None and found > _tolerance(size):
            if not torch.equal(plain, _applied(before, probe.plain, dtype, draw)):
                raise _UndecidableError("they draw random numbers that cannot be drawn again")
            return found
    if not seen:
        raise _UndecidableError("nothing of an image is left")
    return 0.0


@dataclass(frozen=True, eq=False)
class _Probe:
    """An image with and without marked squares, each of which has the part of the image that is nearest to it.

    Attributes:
        plain: ``(3, h, w)`` in [0, 1].
        marked: The same with the marks.
        centers: ``(n, 2)`` rows and columns of the marks.
        side: Of a mark, in pixels.
        nearest: ``(h, w)`` long: the mark that is nearest.
        away: ``(h, w, 2)``: rows and columns from its center.
    """

    plain: Tensor
    marked: Tensor
    centers: Tensor
    side: int
    nearest: Tensor
    away: Tensor

    @classmethod
    def of(cls, size: tuple[int, int]) -> _Probe:
        h, w = size
        side = min(_SIDE, max(3, min(h, w) // 8))
        number = max(2, min(_MARKS, h * w // (12 * side * side)))
        steps = torch.arange(1, number + 1)[:, None] / torch.tensor([_PLASTIC, _PLASTIC**2])
        corners = ((0.5 + steps).frac() * torch.tensor([h - 3 * side, w - 3 * side]) + side).long()
        if side == _SIDE:
            corners -= corners % _SIDE  # whole blocks of JPEG
        rows, columns = torch.arange(h)[:, None] / h, torch.arange(w) / w
        plain = torch.stack([torch.sin(3 * rows + k + 4 * columns) for k in range(3)]) / 2 + 0.5
        marked = plain.clone()
        for top, left in corners.tolist():
            patch = (slice(None), slice(top, top + side), slice(left, left + side))
            marked[patch] = (plain[patch] + 0.5) % 1
        centers = corners + (side - 1) / 2
        grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).float()
        nearest = torch.cdist(grid.reshape(-1, 2), centers).argmin(-1).reshape(h, w)
        return cls(plain, marked, centers, side, nearest, grid - centers[nearest])

    def offset(self, difference: Tensor) -> float | None:
        """Pixels by which ``difference`` ``(h, w)`` shows a mark moved, at most; None where it shows none."""
        labels, flat = self.nearest.flatten(), difference.flatten()
        none = torch.zeros(len(self.centers))
        brightest = none.scatter_reduce(0, labels, flat, "amax")
        # A mark may be erased, or have the same value as before.
        visible = (brightest > 0) & (brightest >= flat.max() / 4)
        if not visible.any():
            return None
        shown = torch.where(flat >= brightest[labels] / 2, flat, 0.0) * visible[labels]
        reach = none.scatter_reduce(0, labels, self.away.abs().amax(-1).flatten() * (shown > 0), "amax")
        moved = torch.zeros(len(none), 2).index_add(0, labels, shown[:, None] * self.away.reshape(-1, 2))
        offsets = moved.norm(dim=-1) / none.index_add(0, labels, shown).clamp(min=torch.finfo().tiny)
        # What stays within a mark has only been erased in part.
        return float(torch.where(reach <= self.side / 2 + (self.side == _SIDE), 0.0, offsets).max())


def _applied(transform: Transform, image: Tensor, dtype: torch.dtype, draw: int) -> Tensor:
    """The transformed ``(3, h, w)`` image in float32, with the random numbers of a draw."""
    given = image.clone() if dtype.is_floating_point else (image * 255).round().to(dtype)
    torch.default_generator.manual_seed(draw)
    random.seed(draw)
    np.random.seed(draw)
    try:
        output = transform(given)
    except Exception as error:
        raise _UndecidableError(
            f"of an image {tuple(given.shape)} they raise {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim < 3:
        raise _UndecidableError(f"of an image {tuple(given.shape)} they make a {type(output).__name__}")
    return output.float()


def _tolerance(size: tuple[int, int]) -> float:
    return min(_TOLERANCE, min(size) / 64)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    # Of the CPU alone: the probe lies there, and a seed for all devices would move theirs.
    state, python, numpy = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
