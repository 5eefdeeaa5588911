"""The parsers of the LeRobot plugins: the ``sf`` block, a checkpoint's configuration, and what datasets record."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile
import numpy as np
import torch
from data_parsers import CAMERA, use_rig
from hostile import Place, mutated, python_values
from hypothesis import strategies as st
from running import Parser

KEY, DEPTH, POSE = "observation.images.wrist", "observation.images.wrist_depth", "camera_pose.wrist"
FEATURES: dict[str, Any] = {
    KEY: {"dtype": "image", "shape": [24, 32, 3], "names": ["height", "width", "channels"]},
    DEPTH: {
        "dtype": "video", "shape": [24, 32, 1], "names": ["height", "width", "channels"],
        "info": {"is_depth_map": True, "depth_unit": "mm", "video.depth_min": 0.01, "video.depth_max": 10.0},
    },
    POSE: {"dtype": "float32", "shape": [16], "names": None},
}  # fmt: skip
STATS = {KEY: {"mean": [[[0.1]]] * 3, "std": [[[0.2]]] * 3, "count": [3]}}
RIG = {
    "format": "sfkit.cameras/1",
    "cameras": {KEY: {key: value for key, value in CAMERA.items() if key != "depth_unit"} | {"depth_key": DEPTH}},
}
ROWS = np.tile(np.eye(4, dtype=np.float32).reshape(16), (3, 1))


class Rows:
    """A table of Hugging Face, as far as poses are read from one."""

    def __init__(self, index: Any, poses: Any) -> None:
        self.columns = {"index": index, POSE: poses}

    def select_columns(self, names: list[str]) -> Rows:
        return self

    def with_format(self, name: str) -> Rows:
        return self

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        return self.columns


def dataset(root: Path, features: Any = None, stats: Any = None, rows: Rows | None = None) -> Any:
    """What is read of a LeRobotDataset, with the properties of LeRobot's metadata."""
    features = FEATURES if features is None else features
    pictures = [key for key, item in features.items() if item["dtype"] in ("image", "video")]
    depth = [key for key in pictures if (item := features[key].get("info")) and item.get("is_depth_map")]
    meta = SimpleNamespace(
        features=features, camera_keys=pictures, depth_keys=depth, stats=STATS if stats is None else stats, root=root
    )
    table = Rows(np.arange(3), ROWS) if rows is None else rows
    return SimpleNamespace(meta=meta, root=root, depth_output_unit="m", image_transforms=None, hf_dataset=table)


def read_cameras(place: Place, folder: Path) -> object:
    from sfkit_lerobot import camera_rig

    place.make(folder / "meta" / "cameras.json")
    return use_rig(camera_rig(dataset(folder)))


def read_features(value: tuple[dict[str, Any], bool], folder: Path) -> object:
    from sfkit_lerobot import camera_rig

    changes, calibrated = value
    features = {key: changes.get(key, item) for key, item in FEATURES.items()}
    if calibrated:
        Place(json.dumps(RIG).encode()).make(folder / "meta" / "cameras.json")
    return use_rig(camera_rig(dataset(folder, features)))


def _as_lerobot_takes(feature: Any) -> bool:
    """LeRobot itself reads the dtype and the info of each feature first."""
    return (
        isinstance(feature, dict)
        and isinstance(feature.get("dtype"), str)
        and isinstance(feature.get("info", {}), dict)
    )


features = st.tuples(
    st.dictionaries(
        st.just(KEY) | st.just(DEPTH),
        st.one_of(*(mutated(st.just(FEATURES[key]), hostile.values) for key in (KEY, DEPTH))).filter(_as_lerobot_takes),
        min_size=1,
    ),
    st.booleans(),
)


def read_statistics(value: Any, folder: Path) -> object:
    from sfkit_lerobot import image_stats

    return image_stats(SimpleNamespace(meta=dataset(folder, stats=value).meta))


def read_poses(value: tuple[Any, Any], folder: Path) -> object:
    from sfkit_lerobot.dataset import pose_table

    return pose_table(dataset(folder, rows=Rows(*value)), POSE)(torch.tensor([0, 1]))


def _rows(n: int, width: int, factor: float, dtype: str) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        return (np.resize(ROWS, (n, width)) * factor).astype(dtype)


dtypes = st.sampled_from(("float32", "float64", "int64", "bool", "complex64", "object", "str"))
numbers = st.sampled_from((1.0, 0.0, -1.0, 1e308, np.nan, np.inf, 1.01, 1e-300))
pose_columns = st.builds(_rows, st.integers(0, 4), st.sampled_from((16, 16, 15, 0, 1)), numbers, dtypes)
index_columns = st.builds(lambda n, dtype: np.arange(n).astype(dtype), st.integers(0, 4), dtypes) | st.just(
    np.zeros(3, "int64")
)


# --------------------------------------------------------------------------------------------------- configurations


def read_block(value: dict[str, Any], folder: Path) -> object:
    from lerobot_policy_spatial_forcing.options import SpatialForcingOptions

    return SpatialForcingOptions(**value).admitted_arguments()


def read_option(value: str, folder: Path) -> object:
    from lerobot_policy_spatial_forcing.options import read_text

    return read_text(value, "--policy.sf.teacher")


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """The block with fields as text, from the command line or from a file; or with values of a program."""
    from dataclasses import fields

    from lerobot_policy_spatial_forcing.options import SpatialForcingOptions
    from lerobot_policy_spatial_forcing.origin import ReadText

    names = sorted(field.name for field in fields(SpatialForcingOptions))
    found = draw(
        st.dictionaries(st.sampled_from(names), block_texts | block_texts.map(ReadText) | python_values, max_size=3)
    )
    return {"teacher": "geometry", **found}


COMPONENT = {"name": "geometry", "frame": "world", "reach": [1, 2]}
#: Lists that refer to each other: a billion values of a few hundred letters.
LAUGHS = "[&a0 [1, 1]" + "".join(f", &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)) + "]"
PAIRS = [{"student_layer": 2, "teacher": COMPONENT, "teacher_layer": 1, "weight": 1.0}]
block_texts = st.one_of(
    st.sampled_from(hostile.TEXTS),
    *(mutated(st.just(good)).map(lambda value: hostile.written(value).decode()) for good in (COMPONENT, PAIRS)),
    *(mutated(st.just(good), hostile.values).map(str) for good in (COMPONENT, PAIRS)),
    st.sampled_from(("[&a [1], *a, *a]", "{[]: 1}", "{? [a] : 1}", "[!!python/object:os.system {}]")),
    st.sampled_from(("[1" + "+1" * 9_000 + "]", LAUGHS)),
    st.text("{}[]()'\",:&*!|>-0aé\n\x00", max_size=12).map(lambda text: "{" + text),
)  # fmt: skip


@cache
def policy_config() -> Any:
    """LeRobot's configuration of a SmolVLA, as it is saved."""
    import tempfile

    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    with tempfile.TemporaryDirectory() as folder:
        SmolVLAConfig(device="cpu")._save_pretrained(Path(folder))
        return json.loads((Path(folder) / "config.json").read_text())


def read_policy_config(place: Place, folder: Path) -> object:
    from lerobot_policy_spatial_forcing.configuration_sf import CONFIGS
    from lerobot_policy_spatial_forcing.sources import _read_config

    place.make(folder / "config.json")
    return _read_config(folder, CONFIGS["sf_smolvla"].base)


def _recording() -> Path:
    import sfkit_demo

    return Path(sfkit_demo.__file__).parent / "recording"


@cache
def recorded() -> Any:
    """The description of the demonstration's own recording."""
    return json.loads((_recording() / "meta" / "info.json").read_text())


def read_recording(place: Place, folder: Path) -> object:
    from sfkit_demo.data import load_frames

    (folder / "meta").mkdir()
    for path in (*_recording().iterdir(), *(_recording() / "meta").iterdir()):
        if path.name not in ("meta", "info.json"):
            (folder / path.relative_to(_recording())).symlink_to(path)
    place.make(folder / "meta" / "info.json")
    return load_frames(folder)


def parsers() -> list[Parser]:
    """Those of sfkit-lerobot and lerobot_policy_spatial_forcing."""
    recordings = hostile.documents(st.builds(recorded))
    return [
        Parser("cameras.json of a LeRobot dataset", hostile.documents(st.just(RIG)), read_cameras),
        Parser("features of a LeRobot dataset", features, read_features),
        Parser("statistics of a LeRobot dataset", mutated(st.just(STATS), python_values), read_statistics),
        Parser("poses of a LeRobot dataset", st.tuples(index_columns, pose_columns), read_poses),
        Parser("the sf block", blocks(), read_block),
        Parser("texts of the sf block", block_texts, read_option),
        Parser("config.json of a LeRobot policy", hostile.documents(st.builds(policy_config)), read_policy_config, 0.5),
        Parser("recordings of the demonstration", recordings, read_recording, 0.01),
    ]
