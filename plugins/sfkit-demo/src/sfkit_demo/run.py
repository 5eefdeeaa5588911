"""Build, train and evaluate one arm."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfkit import SpatialForcing
from sfkit.factory.components import build_teacher
from sfkit_demo.data import load_frames, split_episodes
from sfkit_demo.evaluate import Evaluator, Metrics
from sfkit_demo.images import Images, take_images
from sfkit_demo.model import build_policy
from sfkit_demo.settings import Arm, Settings
from sfkit_demo.train import Curves, train


@dataclass(frozen=True)
class Progress:
    """Progress of a running arm.

    Attributes:
        arm: Name of the arm.
        phase: Current phase.
        step: Number of finished steps.
        loss: Action loss of the last step.
        cosine: Alignment cosine of the last step; None for a plain arm.
    """

    arm: str
    phase: str
    step: int = 0
    loss: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """Results of one arm.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        metrics: Metrics after training.
        untrained: Metrics before training, if requested.
        mean: Metrics of the mean predictor.
        curves: Values during training.
        parameters: Number of parameters of the policy, without the projector.
        frames: Number of training frames, and of held-out frames in the evaluation.
        images: Images for the report, if requested.
    """

    arm: str
    seed: int
    metrics: Metrics
    untrained: Metrics | None
    mean: Metrics
    curves: Curves
    parameters: int
    frames: tuple[int, int]
    images: Images | None


def run_arm(arm: Arm, settings: Settings, on_progress: Callable[[Progress], None]) -> ArmResult:
    """Build, train and evaluate.

    Args:
        arm: The arm.
        settings: Settings of all arms.
        on_progress: Called with the progress.
    """
    on_progress(Progress(arm.name, "reading data"))
    frames = load_frames(settings.data)
    split = split_episodes(frames, settings.held_out)
    with tempfile.TemporaryDirectory(prefix="sfkit-demo-") as folder:
        on_progress(Progress(arm.name, "building"))
        policy, preprocess = build_policy(frames, split.train, settings, Path(folder))
        parameters = sum(parameter.numel() for parameter in policy.parameters())
        if arm.teacher is not None:
            teacher = build_teacher(arm.teacher)
            # Only teachers that require depth get calibration; the probes read it from the dataset.
            cameras = frames.cameras if teacher.requires else None
            policy = SpatialForcing.wrap(
                policy, teacher, preset=settings.preset, student_layer=settings.student_layer, weight=settings.weight,
                objective=settings.objective, cameras=cameras, seed=settings.seed,
                health={"every": settings.health_every},
            )  # fmt: skip
        evaluator = Evaluator(policy, preprocess, frames, split, settings)
        untrained = evaluator.measure(policy)[0] if arm.untrained else None
        curves = train(
            policy, preprocess, frames, split.train, settings,
            held_out_loss=lambda: evaluator.loss(policy),
            on_step=lambda step, loss, cosine: on_progress(Progress(arm.name, "training", step, loss, cosine)),
        )  # fmt: skip
        on_progress(Progress(arm.name, "measuring", settings.steps))
        metrics, mean = evaluator.measure(policy)
        images = take_images(policy, evaluator) if arm.images else None
    counts = (len(split.train), len(evaluator.held_out.rows))
    return ArmResult(arm.name, settings.seed, metrics, untrained, mean, curves, parameters, counts, images)
