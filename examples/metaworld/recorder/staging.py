"""Finished episodes wait here, one file each, until the dataset is assembled in one go.

LeRobot's writer keeps a parquet file open while it records, and loses it when the process is
killed. A folder of whole episodes has no such state: what is in it is done.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recorder.options import Options, require_same_options
from recorder.scene import Episode


def partial_path(root: Path) -> Path:
    """Where the episodes of an unfinished recording at `root` wait."""
    return root.with_name(root.name + ".partial")


class Staging:
    """The folder next to the recording's root that holds an unfinished recording."""

    def __init__(self, root: Path, options: Options) -> None:
        self.path = partial_path(root)
        self._options = options
        self._manifest = self.path / "options.json"
        if self._manifest.exists():
            require_same_options(self._manifest, options)

    def missing(self) -> list[int]:
        """Episodes still to be recorded, in order."""
        return [number for number in range(self._options.total_episodes) if not self._file(number).exists()]

    def save(self, number: int, episode: Episode, failed_attempts: int) -> None:
        """Keep an episode; after this returns it survives any interruption."""
        if not self._manifest.exists():  # not before: a recording that cannot start leaves nothing behind
            self.path.mkdir(parents=True, exist_ok=True)
            self._manifest.write_text(json.dumps({"options": self._options.to_json()}, indent=2))
        unfinished = self.path / "unfinished.npz"
        arrays: dict[str, Any] = {**episode, "failed_attempts": np.array(failed_attempts)}
        np.savez(unfinished, **arrays)
        unfinished.replace(self._file(number))

    def load(self, number: int) -> tuple[Episode, int]:
        """An episode and how many failed attempts preceded it."""
        with np.load(self._file(number)) as stored:
            episode = {key: stored[key] for key in stored.files}
        return episode, int(episode.pop("failed_attempts"))

    def _file(self, number: int) -> Path:
        return self.path / f"episode-{number:06d}.npz"
