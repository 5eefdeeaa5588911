"""The crop of a view that the released loader gives to the network."""

from __future__ import annotations

from sfkit_backbones.placement import Placement, Size

#: The released models of up to this side are trained on squares.
_SQUARE_UP_TO = 224


def official_placement(view: Size, side: int, patch: int, *, square_ok: bool) -> Placement:
    """Placement of a view in the released loader.

    For a side of at most 224, the shorter side becomes ``side``, and the loader crops a centered square. Otherwise the
    longer side becomes ``side``, and the loader crops to a centered multiple of the patch, which loses at most
    ``patch - 1`` pixels. Of a square it keeps three quarters of the height: the models are trained on 4:3 and wider.

    Args:
        view: Height and width in pixels.
        side: Side in pixels of the network's input, a multiple of ``patch``.
        patch: Side of a patch in pixels.
        square_ok: Do not crop squares.
    """
    if side <= _SQUARE_UP_TO:
        scaled = _scaled(view, side / min(view), side)
        canvas = (side, side)
    else:
        scaled = _scaled(view, side / max(view), patch)
        canvas = (scaled[0] // patch * patch, scaled[1] // patch * patch)
        if scaled[0] == scaled[1] and not square_ok:
            canvas = (canvas[0] * 3 // 4 // patch * patch, canvas[1])
    return Placement(canvas, scaled, -((scaled[0] - canvas[0]) // 2), -((scaled[1] - canvas[1]) // 2))


def _scaled(view: Size, factor: float, least: int) -> Size:
    return max(least, round(view[0] * factor)), max(least, round(view[1] * factor))
