"""What a recording is made of: the options that have to match for it to be continued."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


class RecordingError(RuntimeError):
    """A recording cannot be made or continued; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """Everything that decides the content of a recording.

    Two runs with equal options write the same episodes (up to the video encoder's version).
    """

    tasks: tuple[str, ...] = ("reach-v3", "push-v3", "pick-place-v3")
    episodes: int = 36
    """Episodes kept per task."""
    seed: int = 0
    image_size: int = 96
    """Side of the square RGB images, pixels."""
    depth_size: int = 48
    """Side of the square depth maps, pixels; same field of view as the RGB image."""
    corner_fovy: float = 45.0
    """Vertical field of view of the fixed camera, degrees (LeRobot's own is 60)."""
    action_noise: float = 0.15
    """Standard deviation of what is added to the executed action; the label stays clean."""
    action_repeat: int = 2
    """Simulator steps for which one action is held: one dataset frame is one decision."""
    max_steps: int = 75
    """Longest episode, in dataset frames."""
    keep_failures: bool = False
    crf: int = 16
    """x264 quality: lower is better and larger."""

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise RecordingError(f"tasks must be a non-empty list without repeats, got {list(self.tasks)}")
        for name in ("episodes", "image_size", "depth_size", "action_repeat", "max_steps"):
            if getattr(self, name) < 1:
                raise RecordingError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def total_episodes(self) -> int:
        return self.episodes * len(self.tasks)

    def task_of(self, episode: int) -> str:
        """Task of an episode: tasks take turns, so that any prefix of the recording is balanced."""
        return self.tasks[episode % len(self.tasks)]

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"tasks": list(self.tasks)}


def require_same_options(path: Path, options: Options) -> None:
    """Raise `RecordingError` unless the options stored at `path` equal `options`.

    Args:
        path: A JSON file with an `options` object.
        options: What the user asks for now.
    """
    stored = json.loads(path.read_text())["options"]
    wanted = options.to_json()
    differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    if differing:
        listed = "; ".join(f"{key}: recorded {stored.get(key)!r}, asked {wanted.get(key)!r}" for key in differing)
        raise RecordingError(
            f"{path.parent} holds a recording made with other options ({listed}). "
            "Repeat the recorded options to continue it, or choose another --out."
        )
