"""The part of a view that the released loader shows to the network."""

from __future__ import annotations

from sfkit_backbones.placement import Placement, Size

#: Below this side the released models were trained on squares.
_SQUARE_UP_TO = 224


def official_placement(view: Size, side: int, patch: int, *, square_ok: bool) -> Placement:
    """Where the released loader puts a view.

    Up to a side of 224 the shorter side becomes ``side``, and a centered square is cropped. Above, the longer
    side becomes ``side``, and a centered multiple of the patch is cropped: at most ``patch - 1`` pixels are lost,
    except of a square, of which three quarters of the height are kept, since the models were trained on 4:3 and wider.

    Args:
        view: Height and width.
        side: Of what the network sees, a multiple of ``patch``.
        patch: Side of a patch.
        square_ok: Keep squares whole.
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
