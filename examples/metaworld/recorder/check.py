"""Reads a recording back with LeRobot and holds it against its own ray casts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from recorder.dataset import CAMERAS_FILE, MANIFEST_FILE, RAYCASTS_FILE, REPO_ID
from recorder.geometry import Agreement, unproject
from recorder.options import RecordingError


@dataclass(frozen=True)
class TaskSummary:
    """What a recording holds of one task."""

    sentence: str
    episodes: int
    frames: int
    failed_attempts: int
    agreement: dict[str, Agreement]
    """Per camera key: stored depth, calibration and poses against the simulator's ray casts."""


def open_dataset(root: Path) -> Any:
    """The recording at `root` as a `LeRobotDataset`."""
    if not (root / MANIFEST_FILE).exists():
        raise RecordingError(f"{root} holds no finished recording ({MANIFEST_FILE} is missing)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return LeRobotDataset(REPO_ID, root=root, video_backend="pyav")


def check(root: Path, advance: Callable[[], None] = lambda: None) -> list[TaskSummary]:
    """Read every frame of a recording and compare its geometry with the stored ray casts.

    Args:
        root: A finished recording.
        advance: Called once per frame read.

    Returns:
        One summary per task, in order of recording.

    Raises:
        RecordingError: Nothing finished there.
        GeometryError: Depth, intrinsics or poses do not match the ray casts.
    """
    dataset = open_dataset(root)
    calibration = json.loads((root / CAMERAS_FILE).read_text())["cameras"]
    raycasts = pq.read_table(root / RAYCASTS_FILE).to_pandas()
    by_frame = dict(list(raycasts.groupby("index")))
    distances: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    frames: dict[str, int] = {}
    episodes: dict[str, set[int]] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        sentence = item["task"]
        frames[sentence] = frames.get(sentence, 0) + 1
        episodes.setdefault(sentence, set()).add(int(item["episode_index"]))
        if index in by_frame:
            for key, rows in by_frame[index].groupby("camera", observed=True):
                distances.setdefault((sentence, key), []).append(_distances(item, calibration[key], rows))
        advance()
    failures = list(json.loads((root / MANIFEST_FILE).read_text())["failed_attempts"].values())
    summaries = []
    for (sentence, count), failed in zip(frames.items(), failures, strict=True):
        agreement = {key: Agreement.of(np.concatenate(distances[sentence, key])) for key in calibration}
        for key, figures in agreement.items():
            figures.require(f"{root}, {sentence!r}, {key} as stored")
        summaries.append(TaskSummary(sentence, len(episodes[sentence]), count, failed, agreement))
    return summaries


def summary_table(root: Path, summaries: list[TaskSummary]) -> Table:
    """Episodes, frames, geometry and bytes of a recording, for the terminal."""
    megabytes = {part: _size(root / part) / 1e6 for part in ("data", "videos", "meta")}
    sizes = ", ".join(f"{part} {size:.2f}" for part, size in megabytes.items())
    rays = sum(figures.count for row in summaries for figures in row.agreement.values())
    table = Table(
        title=f"{root}: {sum(megabytes.values()):.2f} MB ({sizes})",
        caption=f"error: stored depth, re-projected, against {rays} ray casts; median / 90th percentile, mm",
    )
    table.add_column("task")
    for heading in (
        "episodes",
        "frames",
        "failed",
        *(f"{_short(key)} error" for key in summaries[0].agreement),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summaries:
        errors = [f"{figures.median * 1e3:.2f} / {figures.p90 * 1e3:.2f}" for figures in row.agreement.values()]
        table.add_row(row.sentence, str(row.episodes), str(row.frames), str(row.failed_attempts), *errors)
    return table


def depth_intrinsics(camera: dict[str, Any], size: int) -> NDArray[np.float64]:
    """A camera's intrinsics for its depth map: same field of view, `size` pixels wide.

    With pixel centers at integers an image reaches from -0.5 to width - 0.5, hence the half pixels.
    """
    matrix = np.array(camera["intrinsics"])
    scale = size / camera["width"]
    matrix[:2] *= scale
    matrix[:2, 2] += 0.5 * scale - 0.5
    return matrix


def _distances(item: dict[str, Any], camera: dict[str, Any], rows: Any) -> NDArray[np.float64]:
    depth_m = item[camera["depth_key"]][0].numpy() / 1000
    pose = item[camera["pose_key"]].numpy().reshape(4, 4) if "pose_key" in camera else camera["world_from_camera"]
    pixels = rows[["u", "v"]].to_numpy()
    matrix = depth_intrinsics(camera, depth_m.shape[1])
    points = unproject(pixels, depth_m[pixels[:, 1], pixels[:, 0]], matrix, np.asarray(pose))
    distances: NDArray[np.float64] = np.linalg.norm(points - rows[["x", "y", "z"]].to_numpy(), axis=1)
    return distances


def _short(image_key: str) -> str:
    return image_key.rsplit(".", 1)[-1]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
