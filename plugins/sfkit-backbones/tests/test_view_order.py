"""The order of views."""

from __future__ import annotations

import pytest
from sfkit_backbones.view_order import check_view_order, view_order

from sfkit.errors import ConfigError

NAMES = ("observation.images.top", "observation.images.wrist", "side")


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ((), (0, 1, 2)),
        (("wrist",), (1, 0, 2)),
        (("side", "observation.images.top"), (2, 0, 1)),
        (("absent", "wrist"), (1, 0, 2)),
    ],
)
def test_wanted_cameras_come_first(wanted: tuple[str, ...], order: tuple[int, ...]) -> None:
    assert view_order(NAMES, wanted) == order


@pytest.mark.parametrize(
    ("names", "wanted", "says"),
    [
        (NAMES, ("wirst",), r"'wirst' is no view.*Did you mean"),
        (("a.top", "b.top"), ("top",), r"'top' fits a\.top, b\.top"),
        (NAMES, ("side", "side"), "names 'side' twice"),
    ],
)
def test_wrong_names_are_errors(names: tuple[str, ...], wanted: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_view_order(names, wanted)
