"""The report's plain words: what is measured, what follows from it, and what does not."""

from __future__ import annotations

import os
from html import escape
from importlib.metadata import version
from statistics import median

from sfkit.factory.components import build_teacher
from sfkit.saving.trust import public_text
from sfkit_demo.comparison import Comparison
from sfkit_demo.settings import BLOCKS, POLICIES
from sfkit_demo.teacher import public_name


def meaning(comparison: Comparison) -> str:
    """What the figures mean."""
    constant = comparison.plain.mean.cosine
    teacher = build_teacher(comparison.settings.teacher)
    depth = (
        "Where the teacher is made of depth this is a check that alignment arrives, and no more: the target was "
        "trained for."
        if "depth" in teacher.requires
        else "This teacher is not given any depth."
    )
    points = [
        "<strong>Object and goal position</strong>: from all visual tokens at the tapped layer, a linear map reads "
        "where the object is. The map is fitted on the training episodes, its strength picked among them, and its "
        "error measured on the others. The positions were never shown to the policy nor to the teacher, so this tells "
        "whether tokens carry usable 3D information. It does not tell whether the policy uses it.",
        "<strong>Residual depth</strong>: a linear map from each token to how far away its patch is, beyond what its "
        "position in the image tells. For a fixed camera the position alone tells most. " + depth,
        "<strong>Held-out action loss</strong>: the policy's own flow-matching loss on episodes not trained on, "
        "with noise and times that are the same for both arms. It is the nearest thing here to the policy's task, and "
        "it is not success: nothing was run in the simulator. At this size, success rates would be noise.",
        f"<strong>Cosine to the teacher</strong>: how near a linear read-out of the tokens comes to the "
        f"{escape(public_name(teacher))} features. Knowing nothing but a patch's position already gives "
        f"{constant:.2f}, so the figure is no evidence by itself.",
        "<strong>Untrained</strong>: random weights keep much of an image, which a linear map can read. Training for "
        "actions alone may lose some of it; compare with that column, not with zero.",
        "<strong>Scale</strong>: about a million parameters, from scratch, on some two thousand frames of three "
        "simulated tasks. None of this says how much a pretrained policy of full size gains on a robot.",
    ]
    return "<ul>" + "".join(f"<li>{point}</li>" for point in points) + "</ul>"


def details(comparison: Comparison) -> str:
    """Settings and versions."""
    settings, plain = comparison.settings, comparison.plain
    teacher = build_teacher(settings.teacher)
    options = ", ".join(f"{key}={value}" for key, value in teacher.spec.options.items()) or "its defaults"
    options = public_text("teacher", teacher.spec, options)
    seconds = [median(arm.curves.seconds) for arm in (plain, comparison.aligned)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spatial-forcing", "lerobot", "torch"))
    rows = [
        ("teacher", f"{public_name(teacher)} (license {teacher.license}), {options}; present in training only"),
        (
            "alignment",
            f"weight {settings.weight:g} at student layer {settings.student_layer} of {BLOCKS}, {settings.method}",
        ),
        (
            "policy",
            f"LeRobot's {POLICIES[settings.policy]} classes, {plain.parameters:,} parameters, 4 x 4 tokens for each "
            "camera",
        ),
        (
            "training",
            f"{settings.steps} steps of {settings.batch_size} frames, AdamW, peak learning rate {settings.lr:g}, "
            f"cosine decay, gradients clipped at {settings.clip:g}",
        ),
        (
            "data",
            f"{plain.frames[0]} frames to train on; {plain.frames[1]} frames of whole held-out episodes to measure on "
            f"(one in {settings.stride}); the split is the same for every seed",
        ),
        (
            "time of a step",
            f"{seconds[0]:.3f} s plain, {seconds[1]:.3f} s aligned ({seconds[1] / seconds[0]:.2f} times): medians, "
            "measured side by side, so whatever else the machine did is in them",
        ),
        ("versions", f"{versions}, {os.cpu_count()} cores"),
    ]
    body = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(text)}</td></tr>' for name, text in rows)
    return f"<table><tbody>{body}</tbody></table>"
