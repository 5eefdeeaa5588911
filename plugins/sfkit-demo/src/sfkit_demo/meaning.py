"""The report's explanations: what each number measures, and what it does not show."""

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
    """Explanations of the numbers, as an HTML list."""
    constant = comparison.plain.mean.cosine
    teacher = build_teacher(comparison.settings.teacher)
    depth = (
        "With a teacher of depth this shows only that alignment works: the policy is trained for this target."
        if "depth" in teacher.requires
        else "This teacher gets no depth."
    )
    points = [
        "<strong>Object and goal position</strong>: a linear map predicts the position of the object from all visual "
        "tokens at the tapped layer. It is fitted on the training episodes, with regularization chosen among them, and "
        "evaluated on the others. Neither the policy nor the teacher gets the positions, so this shows whether tokens "
        "carry usable 3D information. It does not show whether the policy uses it.",
        "<strong>Residual depth</strong>: a linear map predicts the depth of each token's patch, minus the mean depth "
        "of its position in the image. With a fixed camera the position predicts most of the depth. " + depth,
        "<strong>Held-out action loss</strong>: the policy's own flow-matching loss on episodes not trained on, "
        "with noise and times that are the same for both arms. It is the metric nearest to the policy's task, and it "
        "is not a success rate: no policy ran in the simulator. At this size, success rates would be noise.",
        f"<strong>Cosine to the teacher</strong>: cosine of a linear prediction from the tokens and the "
        f"{escape(public_name(teacher))} features. A patch's position alone already gives {constant:.2f}, so the "
        "value is no evidence by itself.",
        "<strong>Untrained</strong>: random weights keep much information of an image, which a linear map can read. "
        "Training for actions only may lose some of it; compare with that column, and not with zero.",
        "<strong>Scale</strong>: about a million parameters, from scratch, on some two thousand frames of three "
        "simulated tasks. This does not show how much a pretrained policy of full size gains on a robot.",
    ]
    return "<ul>" + "".join(f"<li>{point}</li>" for point in points) + "</ul>"


def details(comparison: Comparison) -> str:
    """Settings and versions."""
    settings, plain = comparison.settings, comparison.plain
    teacher = build_teacher(settings.teacher)
    options = ", ".join(f"{key}={value}" for key, value in teacher.changed_options.items()) or "its defaults"
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
            "measured in parallel, including the load of other processes",
        ),
        ("versions", f"{versions}, {os.cpu_count()} cores"),
    ]
    body = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(text)}</td></tr>' for name, text in rows)
    return f"<table><tbody>{body}</tbody></table>"
