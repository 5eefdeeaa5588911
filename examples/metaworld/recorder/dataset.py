"""From staged episodes to a compact LeRobotDataset (format v3) with its calibration files."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recorder.cameras import Camera
from recorder.options import Options
from recorder.scene import ACTION_SIZE, Episode, Scene, sentence_for
from recorder.staging import Staging

REPO_ID = "local/metaworld-mini"
CAMERAS_FILE = Path("meta/cameras.json")
RAYCASTS_FILE = Path("meta/raycasts.parquet")
MANIFEST_FILE = Path("meta/recording.json")
KEYFRAME_EVERY = 12
"""Frames from one video key frame to the next: random access decodes at most so many."""


def features(cameras: tuple[Camera, ...], options: Options) -> dict[str, dict[str, Any]]:
    """LeRobot's description of every column; keys outside `observation.` and `action` reach no policy."""
    position = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    described: dict[str, dict[str, Any]] = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "action": {"dtype": "float32", "shape": (ACTION_SIZE,), "names": ["dx", "dy", "dz", "gripper"]},
        "label.object_position": position,
        "label.goal_position": dict(position),
    }
    axes = ["height", "width", "channels"]
    for camera in cameras:
        rgb, depth = options.image_size, options.depth_size
        described[camera.image_key] = {"dtype": "video", "shape": (rgb, rgb, 3), "names": axes}
        described[camera.depth_key] = {
            "dtype": "image",  # not video: LeRobot's depth video has 12 bits and no code for "invalid"
            "shape": (depth, depth, 1),
            "names": axes,
            "info": {"is_depth_map": True},
        }
        if camera.moving:
            names = [f"m{row}{column}" for row in range(4) for column in range(4)]
            described[camera.pose_key] = {"dtype": "float32", "shape": (16,), "names": names}
    return described


def assemble(staging: Staging, root: Path, scene: Scene, options: Options, advance: Callable[[], None]) -> None:
    """Write all staged episodes as a LeRobotDataset at `root`, which appears only when complete.

    Args:
        staging: Holds every episode of the recording.
        root: Where the dataset goes; must not exist yet.
        scene: Any scene of the recording, for its cameras and frame rate.
        options: The recording's options.
        advance: Called once per episode written.
    """
    unfinished = staging.path / "dataset"
    shutil.rmtree(unfinished, ignore_errors=True)
    writer = _open_writer(unfinished, scene, options)
    probes: list[Episode] = []
    failures = dict.fromkeys(options.tasks, 0)
    for number in range(options.total_episodes):
        episode, failed = staging.load(number)
        task = options.task_of(number)
        failures[task] += failed
        probes.append(_with_global_index(episode, writer.meta.total_frames))
        _write_episode(writer, episode, sentence_for(task))
        advance()
    writer.finalize()
    _compact(unfinished)
    _write_raycasts(unfinished / RAYCASTS_FILE, probes, scene.cameras)
    _write_json(unfinished / CAMERAS_FILE, calibration(scene, options))
    versions = {name: version(name) for name in ("metaworld", "mujoco", "lerobot")}
    manifest = {"options": options.to_json(), "failed_attempts": failures, "versions": versions}
    _write_json(unfinished / MANIFEST_FILE, manifest)
    unfinished.rename(root)
    shutil.rmtree(staging.path)


def calibration(scene: Scene, options: Options) -> dict[str, Any]:
    """The contents of `meta/cameras.json`: intrinsics in RGB pixels, poses of the fixed cameras."""
    described: dict[str, Any] = {}
    for camera in scene.cameras:
        entry: dict[str, Any] = {
            "width": options.image_size,
            "height": options.image_size,
            "intrinsics": scene.rig.intrinsics(camera, options.image_size).tolist(),
            "depth_key": camera.depth_key,
        }
        if camera.moving:
            entry["pose_key"] = camera.pose_key
        else:
            entry["world_from_camera"] = scene.rig.world_from_camera(camera).tolist()
        described[camera.image_key] = entry
    return {"format": "sfkit.cameras/1", "cameras": described}


def _open_writer(root: Path, scene: Scene, options: Options) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        import av
        import datasets
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)  # x264 prints its statistics after every episode,
    datasets.disable_progress_bars()  # and so does the embedding of images into parquet
    encoder = RGBEncoderConfig(vcodec="h264", crf=options.crf, preset="veryslow", g=KEYFRAME_EVERY)
    described = features(scene.cameras, options)
    return LeRobotDataset.create(
        REPO_ID,
        scene.fps,
        described,
        root=root,
        robot_type="sawyer",
        rgb_encoder=encoder,
        video_backend="pyav",
    )


def _write_episode(writer: Any, episode: Episode, sentence: str) -> None:
    columns = {key: values for key, values in episode.items() if not key.startswith("probe.")}
    for step in range(len(columns["action"])):
        writer.add_frame({key: values[step] for key, values in columns.items()} | {"task": sentence})
    writer.save_episode(parallel_encoding=False)


def _with_global_index(episode: Episode, first_frame: int) -> Episode:
    probes = {key: values for key, values in episode.items() if key.startswith("probe.")}
    return probes | {"probe.index": probes["probe.frame_index"].astype(np.int64) + first_frame}


def _write_raycasts(path: Path, probes: list[Episode], cameras: tuple[Camera, ...]) -> None:
    def column(key: str) -> NDArray[Any]:
        return np.concatenate([probe[f"probe.{key}"] for probe in probes])

    pixel, hit = column("pixel"), column("hit")
    names = pa.DictionaryArray.from_arrays(pa.array(column("camera")), [camera.image_key for camera in cameras])
    table = pa.table({"index": column("index"), "camera": names, "u": pixel[:, 0], "v": pixel[:, 1]})
    for axis, name in enumerate("xyz"):
        table = table.append_column(name, pa.array(hit[:, axis]))
    pq.write_table(table, path, compression="zstd")


def _compact(root: Path) -> None:
    """Recompress the parquet files, whose depth maps LeRobot embeds as uncompressed TIFF.

    Neighboring frames are nearly the same, so that zstd over whole pages is smaller than any
    compression of single images. Row groups (one per episode) and schema stay as they are.
    """
    shutil.rmtree(root / "images", ignore_errors=True)
    for path in sorted(root.glob("*/**/*.parquet")):
        smaller = path.with_suffix(".zstd")
        source = pq.ParquetFile(path)
        options = {"compression": "zstd", "compression_level": 19, "data_page_size": 1 << 24}
        with pq.ParquetWriter(smaller, source.schema_arrow, use_dictionary=False, **options) as writer:
            for group in range(source.num_row_groups):
                writer.write_table(source.read_row_group(group))
        source.close()
        smaller.replace(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
