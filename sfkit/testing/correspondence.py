"""The spatial correspondence check: do student tokens and teacher features look at the same piece of the picture?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sfkit.config import ENCODER
from sfkit.errors import SfkitError
from sfkit.training.pair import AlignmentPair
from sfkit.wrap import SpatialForcing

#: ``perturb(batch, view, (rows, columns)) -> batch``: change the picture (and depth) of one view inside a pixel box.
Perturb = Callable[[Any, int, tuple[slice, slice]], Any]


class CorrespondenceError(SfkitError):
    """A perturbed patch moved another patch's token or feature most."""


def check_correspondence(
    policy: nn.Module,
    batch: Any,
    perturb: Perturb,
    *,
    cells: Iterable[tuple[int, int]] | None = None,
    run: Callable[[nn.Module, Any], Any] = lambda policy, batch: policy(batch),
) -> None:
    """Perturb one image patch at a time; what moves most must be that patch's own token and feature.

    Of a teacher with a grid of its own, that is a cell which overlaps with the patch. It catches exchanged axes, token
    spans that are off by one, exchanged cameras and wrong letterboxes, all of which a cosine loss cannot see.

    Args:
        policy: A wrapped policy in training mode, best at layer 0, where tokens have not been mixed yet, or at
            ``"encoder"``. The layer of the first pair is looked at.
        batch: One batch of it.
        perturb: Returns a changed copy of the batch; the box is in pixels of the *view*.
        cells: ``(row, column)`` to try in each view; the valid corners and the center by default.
        run: How the policy takes a batch. What it draws at random is the same each time.

    Raises:
        CorrespondenceError: Names the patch and what moved instead, if anything did.
    """
    before = _maps(policy, batch, run)
    mask = before["mask"].any(0)
    views, (rows, columns) = mask.shape[0], mask.shape[1:]
    height, width = before["size"].tolist()
    for view in range(views):
        if not bool(mask[view].any()):
            continue  # a camera that is missing in all samples
        for row, column in cells if cells is not None else _corners_and_center(mask[view]):
            box = (_side(row, rows, height), _side(column, columns, width))
            after = _maps(policy, perturb(batch, view, box), run)
            for name in ("student", "teacher"):
                moved = (after[name] - before[name]).float().norm(dim=-1).mean(0)
                _expect(name, moved, (view, row, column), (rows, columns))


def _maps(policy: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any]) -> dict[str, Tensor]:
    handle = SpatialForcing.of(policy)
    if handle is None:
        raise CorrespondenceError("The policy is not wrapped.", "Wrap it first.")
    seen: dict[str, Tensor] = {}
    pair: AlignmentPair = handle.pairs[0]
    adapter, runner = handle.adapter, pair.runner
    method = "encoder_tokens" if pair.site.student_layer == ENCODER else "visual_tokens"
    real_tokens, real_features = getattr(adapter, method), runner.features

    def tokens(captured: Any, views: Any) -> Any:
        found = real_tokens(captured, views)
        seen.update(student=found.values.detach().clone(), mask=found.mask, size=torch.tensor(views.size))
        return found

    def features(*args: Any) -> Any:
        found = real_features(*args)
        seen["teacher"] = torch.where(found[0].mask.unsqueeze(-1), found[0].values, 0.0).clone()
        return found

    with (
        mock.patch.object(adapter, method, tokens),
        mock.patch.object(runner, "features", features),
        torch.random.fork_rng(devices=[]),
    ):
        run(policy, batch)
    return seen


def _corners_and_center(mask: Tensor) -> list[tuple[int, int]]:
    valid = mask.nonzero()
    (top, left), (bottom, right) = valid.min(0).values.tolist(), valid.max(0).values.tolist()
    center = ((top + bottom) // 2, (left + right) // 2)
    return [(top, left), (top, right), (bottom, left), (bottom, right), center]


def _side(index: int, count: int, pixels: int) -> slice:
    step = pixels // count
    return slice(index * step, (index + 1) * step)


def _expect(name: str, moved: Tensor, wanted: tuple[int, int, int], grid: tuple[int, int]) -> None:
    """What moved most lies where it was expected; a teacher's cell, on a grid of its own, overlaps with the patch."""
    _, rows, columns = moved.shape
    if not bool(moved.max() > 0):
        raise CorrespondenceError(
            f"Perturbing row {wanted[1]}, column {wanted[2]} of view {wanted[0]} moved nothing in the {name}.",
            "Check that perturb changes what the policy reads, in a copy of the batch, and that the adapter shows the "
            "teacher the pictures of this batch.",
        )
    most = int(moved.argmax())
    found = (most // (rows * columns), most // columns % rows, most % columns)
    places = zip(found[1:], (rows, columns), wanted[1:], grid, strict=True)
    own = all(_overlap(*place) for place in places)
    if found[0] != wanted[0] or not own:
        view, row, column = wanted
        raise CorrespondenceError(
            f"Perturbing row {row}, column {column} of view {view} moved the {name}'s row {found[1]}, "
            f"column {found[2]} of view {found[0]} most"
            f"{'' if (rows, columns) == grid else f', on its grid of {rows}x{columns}'}.",
            "Check the order of axes, the token span, the order of cameras and the letterbox in the adapter.",
        )


def _overlap(one: int, ones: int, other: int, others: int) -> bool:
    """Whether cell ``one`` of ``ones`` along an axis and cell ``other`` of ``others`` have a piece of it in common."""
    return one * others < (other + 1) * ones and other * ones < (one + 1) * others
