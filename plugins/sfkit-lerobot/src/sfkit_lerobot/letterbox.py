"""How LeRobot's policies fit an image into their view."""

from __future__ import annotations

from sfkit.views.geometry import Letterbox, Placement, Size, fitted, pad_around, unchanged

__all__ = ["Letterbox", "Placement", "Size", "fitted", "pad_around", "pad_top_left", "unchanged"]


def pad_top_left(source: Size, view: Size) -> Letterbox:
    """SmolVLA: the image is in the lower right corner."""
    if source == view:
        return unchanged(source)
    resized = fitted(source, view)
    return Letterbox(source, resized, view, (max(0, view[0] - resized[0]), max(0, view[1] - resized[1])))
