"""Names and notes of the aligned arm's teacher."""

from __future__ import annotations

from sfkit.factory.components import ComponentLike, build_teacher
from sfkit.saving.trust import public_text
from sfkit.teachers.base import Teacher


def is_geometry(value: ComponentLike | Teacher) -> bool:
    """Whether this is the built-in geometry teacher, with any options."""
    return build_teacher(value).name == "geometry"


def public_name(teacher: Teacher) -> str:
    """The teacher's name for reports, without paths of this machine."""
    return public_text("teacher", teacher.spec, teacher.name)


def teacher_note(value: ComponentLike | Teacher) -> str:
    """A note on any teacher but the geometry of the scenes; empty for that one."""
    if is_geometry(value):
        return ""
    teacher = build_teacher(value)
    name = public_name(teacher)
    weights = teacher.identity.get("weights")
    if weights is None or weights == "random":
        return (
            f"The teacher {name!r} is not the geometry of these scenes, and the demo does not verify its "
            "weights. A randomly initialized teacher teaches nothing about space: such a run shows the wiring, and "
            "any difference of the arms comes from the added loss alone."
        )
    weights = public_text("teacher", teacher.spec, weights)
    return (
        f"The teacher {name!r} has the weights of {weights}, which the demo does not verify. There is no study of it "
        "over several seeds: one run of two arms shows that it works, and no more."
    )
