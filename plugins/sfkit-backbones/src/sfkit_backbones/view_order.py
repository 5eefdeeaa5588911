"""Order of the views for teachers that attend over all views; the first one is the reference view."""

from __future__ import annotations

from collections.abc import Sequence

from sfkit.errors import ConfigError, did_you_mean


def check_view_order(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that each camera in ``wanted`` matches exactly one of ``names``, without repetition.

    Args:
        names: Cameras of the policy's views.
        wanted: Cameras by full name, or by the part of the name after the last dot.

    Raises:
        ConfigError: A camera is unknown, ambiguous, or listed twice.
    """
    chosen: set[int] = set()
    known = [*names, *map(_short, names)]
    for camera in wanted:
        found = _find(names, camera)
        if not found:
            raise ConfigError(
                f"view_order: {camera!r} is no view of this policy.{did_you_mean(camera, known)}",
                f"Its views: {', '.join(names)}.",
            )
        if len(found) > 1:
            raise ConfigError(f"view_order: {camera!r} fits {', '.join(names[i] for i in found)}.", "Give full names.")
        if found[0] in chosen:
            raise ConfigError(f"view_order names {names[found[0]]!r} twice.", "Name each camera once.")
        chosen.add(found[0])


def view_order(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Indices of ``names``: the cameras in ``wanted`` first, then the others in their own order.

    A camera in ``wanted`` that is absent from ``names`` (because these samples lack it) is skipped.
    """
    chosen = [index for camera in wanted for index in _find(names, camera)]
    return (*chosen, *(i for i in range(len(names)) if i not in chosen))


def _find(names: Sequence[str], camera: str) -> list[int]:
    exact = [i for i, name in enumerate(names) if name == camera]
    return exact or [i for i, name in enumerate(names) if _short(name) == camera]


def _short(name: str) -> str:
    return name.rpartition(".")[2]
