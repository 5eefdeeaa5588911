"""The teacher of the aligned arm, by which all arms are measured."""

from __future__ import annotations

from typing import Any

from sfkit.factory.components import build_teacher
from sfkit.saving.trust import public_text
from sfkit.teachers.base import Teacher


def is_geometry(value: Any) -> bool:
    """Whether this is the built-in geometry teacher, with any options."""
    return build_teacher(value).name == "geometry"


def public_name(teacher: Teacher) -> str:
    """Its name as a report may publish it: without a path of this machine."""
    return public_text("teacher", teacher.spec, teacher.name)


def teacher_note(value: Any) -> str:
    """What must be said of a teacher that is not the scenes' own geometry; empty for the one that is."""
    if is_geometry(value):
        return ""
    teacher = build_teacher(value)
    name = public_name(teacher)
    weights = teacher.identity.get("weights")
    if weights is None or weights == "random":
        return (
            f"The teacher {name!r} is not the geometry of these scenes, and nothing here vouches for its "
            "weights. A randomly initialized teacher teaches nothing about space: such a run shows the wiring, and "
            "whatever sets the arms apart is owed to the added loss alone."
        )
    weights = public_text("teacher", teacher.spec, weights)
    return (
        f"The teacher {name!r} has the weights of {weights}, which nothing here has looked at. There is no "
        "study of it over several seeds: one run of two arms shows that it works, not what it is worth."
    )
