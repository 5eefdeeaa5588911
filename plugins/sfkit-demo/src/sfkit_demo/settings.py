"""What a run is made of. Everything here can be pickled, since arms run in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Policies that can be trained, by the names of their adapters, and what the report calls them.
POLICIES = {"smolvla": "SmolVLA", "pi0": "pi0", "pi05": "pi0.5"}
#: Decoder blocks of each.
BLOCKS = 6


@dataclass(frozen=True)
class Settings:
    """One training run, whichever its arm.

    Attributes:
        data: Folder of the LeRobot dataset.
        policy: One of :data:`POLICIES`.
        steps: Optimizer steps.
        seed: Of weights, batches, noise and times.
        student_layer: Tapped student layer, for the alignment and for every probe.
        weight: Weight of the alignment loss.
        preset: Name of a published method that decides what is not given here.
        objective: Of the alignment; None leaves it to the preset, or to sfkit.
        teacher: The teacher by which all arms are *measured* (cosine); which arm trains with one is the arm's matter.
        batch_size: Samples for each step.
        chunk: Actions predicted at once.
        lr: Peak learning rate.
        warmup: Share of the steps over which the learning rate rises.
        weight_decay: Of AdamW.
        clip: Largest gradient norm.
        held_out: Share of each task's episodes that are never trained on.
        stride: Frames apart at which episodes are probed: neighbors are near copies.
        noise_draws: Noises and times drawn for each held-out frame.
        checkpoints: How often the held-out loss is looked at on the way.
    """

    data: Path
    policy: str = "smolvla"
    steps: int = 800
    seed: int = 0
    student_layer: int = 4
    weight: float = 0.5
    preset: str | None = None
    objective: str | None = None
    teacher: Any = "geometry"
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
        """The health monitor measures at one step of so many."""
        return max(1, self.steps // 24)

    @property
    def method(self) -> str:
        """Preset and objective in words."""
        objective = [f"{self.objective or 'cosine'} objective"] if self.objective or not self.preset else []
        return ", ".join([*([f"preset {self.preset}"] if self.preset else []), *objective])


@dataclass(frozen=True)
class Arm:
    """One of the runs that are compared.

    Attributes:
        name: For tables and files.
        teacher: What ``SpatialForcing.wrap`` is given; None trains the policy as it is.
        untrained: Also measure the policy before its first step (all arms start from the same weights).
        images: Also make what the report shows of this arm.
    """

    name: str
    teacher: Any = None
    untrained: bool = False
    images: bool = False


@dataclass(frozen=True)
class Job:
    """An arm with its settings."""

    arm: Arm
    settings: Settings = field(repr=False)
