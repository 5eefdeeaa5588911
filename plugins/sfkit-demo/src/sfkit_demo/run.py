"""One arm from start to end, in whatever process it is called."""

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
    """News of a running arm.

    Attributes:
        arm: Its name.
        phase: What it does now.
        step: Steps finished.
        loss: Action loss of the last step.
        cosine: Alignment cosine of the last step, where there is one.
    """

    arm: str
    phase: str
    step: int = 0
    loss: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """All that one arm gave.

    Attributes:
        arm: Its name.
        seed: Its seed.
        metrics: After training.
        untrained: Before training, if that was asked for.
        mean: Of the mean predictor.
        curves: Seen on the way.
        parameters: Of the policy, without the projector.
        frames: Frames trained on, and held-out frames measured.
        images: What the report shows, if that was asked for.
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


def run_arm(arm: Arm, settings: Settings, tell: Callable[[Progress], None]) -> ArmResult:
    """Build, train and measure.

    Args:
        arm: Which run.
        settings: What all arms share.
        tell: Called with news.
    """
    tell(Progress(arm.name, "reading data"))
    frames = load_frames(settings.data)
    split = split_episodes(frames, settings.held_out)
    with tempfile.TemporaryDirectory(prefix="sfkit-demo-") as folder:
        tell(Progress(arm.name, "building"))
        policy, preprocess = build_policy(frames, split.train, settings, Path(folder))
        parameters = sum(parameter.numel() for parameter in policy.parameters())
        if arm.teacher is not None:
            teacher = build_teacher(arm.teacher)
            # Depth and calibration are for the teachers that ask for them; the probes have their own.
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
            look=lambda: evaluator.loss(policy),
            advance=lambda step, loss, cosine: tell(Progress(arm.name, "training", step, loss, cosine)),
        )  # fmt: skip
        tell(Progress(arm.name, "measuring", settings.steps))
        metrics, mean = evaluator.measure(policy)
        images = take_images(policy, evaluator) if arm.images else None
    counts = (len(split.train), len(evaluator.held_out.rows))
    return ArmResult(arm.name, settings.seed, metrics, untrained, mean, curves, parameters, counts, images)
