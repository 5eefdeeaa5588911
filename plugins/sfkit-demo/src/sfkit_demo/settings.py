"""Settings of a run. Everything here can be pickled, since arms run in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfkit.factory.components import ComponentLike
    from sfkit.teachers.base import Teacher

#: Titles of the policies in the report, by the names of their adapters.
POLICIES = {"smolvla": "SmolVLA", "pi0": "pi0", "pi05": "pi0.5"}
#: Number of decoder blocks of each policy.
BLOCKS = 6


@dataclass(frozen=True)
class Settings:
    """Settings of all arms of one seed.

    Attributes:
        data: Folder of the LeRobot dataset.
        policy: One of :data:`POLICIES`.
        steps: Optimizer steps.
        seed: Seed of weights, batches, noise and times.
        student_layer: Tapped student layer, for the alignment and for every probe.
        weight: Weight of the alignment loss.
        preset: Name of a published method; its arguments apply where none is given here.
        objective: Objective of the alignment; None takes the preset's or sfkit's default.
        teacher: The teacher of the metric ``cosine`` for all arms; :class:`Arm` has the teacher for training.
        batch_size: Samples per step.
        chunk: Actions per prediction.
        lr: Peak learning rate.
        warmup: Share of the steps with a rising learning rate.
        weight_decay: Weight decay of AdamW.
        clip: Largest gradient norm.
        held_out: Share of held-out episodes of each task.
        stride: Distance of evaluated frames in an episode; consecutive frames are nearly equal.
        noise_draws: Draws of noise and time for each held-out frame.
        checkpoints: Number of evaluations of the held-out loss during training.
    """

    data: Path
    policy: str = "smolvla"
    steps: int = 800
    seed: int = 0
    student_layer: int = 4
    weight: float = 0.5
    preset: str | None = None
    objective: str | None = None
    teacher: ComponentLike = "geometry"
    batch_size: int = 16
    chunk: int = 8
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip: float = 10.0
    held_out: float = 1 / 3
    stride: int = 2
    noise_draws: int = 4
    checkpoints: int = 10

    @property
    def health_every(self) -> int:
        """Number of steps between measurements of the health monitor."""
        return max(1, self.steps // 24)

    @property
    def method(self) -> str:
        """Preset and objective as text."""
        objective = [f"{self.objective or 'cosine'} objective"] if self.objective or not self.preset else []
        return ", ".join([*([f"preset {self.preset}"] if self.preset else []), *objective])


@dataclass(frozen=True)
class Arm:
    """One of the compared runs.

    Attributes:
        name: Name in tables and files.
        teacher: Teacher for ``SpatialForcing.wrap``; None trains without alignment.
        untrained: Evaluate the policy before its first step too (all arms start from the same weights).
        images: Collect the images for the report.
    """

    name: str
    teacher: ComponentLike | Teacher | None = None
    untrained: bool = False
    images: bool = False


@dataclass(frozen=True)
class Job:
    """An arm with its settings."""

    arm: Arm
    settings: Settings = field(repr=False)
