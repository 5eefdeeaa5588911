"""More parsers of the core: calibration, tensors and the command line."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import hostile
import torch
from hostile import Place, mutated, python_values
from hypothesis import strategies as st
from running import Parser
from torch import Tensor

from sfkit.cli import main
from sfkit.cli.console import parse_options
from sfkit.errors import SfkitError
from sfkit.views.cameras import Camera, CameraRig, PoseTable, require_rig
from sfkit.views.types import FeatureMap, Views

# ----------------------------------------------------------------------------------------------- cameras and views

CAMERA: dict[str, Any] = {
    "width": 32, "height": 24, "intrinsics": [[50.0, 0.0, 15.5], [0.0, 50.0, 11.5], [0.0, 0.0, 1.0]], "depth_key": "d",
    "depth_unit": "m", "depth_range": [0.1, 10.0],
    "world_from_camera": [[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, 0.2], [0.0, 0.0, 1.0, 0.3], [0.0, 0.0, 0.0, 1.0]],
}  # fmt: skip
CAMERAS = {"format": "sfkit.cameras/1", "cameras": {"front": CAMERA}}


def load_cameras(place: Place, folder: Path) -> object:
    place.make(folder / "cameras.json")
    return use_rig(CameraRig.load(folder / "cameras.json"))


def use_rig(rig: CameraRig) -> object:
    """What a step asks of a rig: finite, and of the promised shapes."""
    for key, camera in require_rig(rig).cameras.items():
        k, pose = rig.intrinsics(key, (camera.height, camera.width)), rig.pose(key, None, 2)
        assert k.shape == (3, 3)
        assert camera.intrinsics is None or bool(k.inverse().isfinite().all())
        assert pose is None or bool((pose.isfinite().all(), pose.inverse().isfinite().all()))
    return rig


def make_camera(value: Any, folder: Path) -> object:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        with contextlib.suppress(TypeError):  # "self" is no keyword
            use_rig(CameraRig({"front": Camera(**value)}))
    return use_rig(CameraRig({"front": Camera.parse("camera 'front'", value)}))


def make_rig(value: tuple[Any, Any], folder: Path) -> object:
    return require_rig(CameraRig(*value))


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """Tensors of up to six axes, of any dtype and often empty; or something else."""
    if draw(st.integers(0, 5)) == 0:
        return draw(python_values)
    shape = draw(st.lists(st.integers(0, 4), max_size=6))
    names = ("float32", "float64", "bfloat16", "int64", "uint8", "bool", "complex64", "float8_e5m2")
    made = torch.zeros(shape).to(getattr(torch, draw(st.sampled_from(names))))
    return made.to_sparse() if draw(st.integers(0, 20)) == 0 and made.dtype == torch.float32 else made


def sound_views(b: int, v: int, h: int, w: int) -> dict[str, Any]:
    return {
        "images": torch.zeros(b, v, 3, h, w), "valid": torch.ones(b, v, h, w, dtype=torch.bool),
        "names": tuple(f"cam{i}" for i in range(v)), "depth": torch.ones(b, v, h, w),
        "intrinsics": torch.eye(3).expand(b, v, 3, 3), "world_from_camera": torch.eye(4).expand(b, v, 4, 4),
        "source_to_view": torch.eye(3).expand(b, v, 3, 3), "time": torch.zeros(b, v),
        "keys": tuple(("data", i, i) for i in range(b)),
    }  # fmt: skip


view_fields = st.tuples(
    st.builds(sound_views, *(st.integers(0, 3) for _ in range(4))),
    st.dictionaries(st.sampled_from(sorted(sound_views(1, 1, 1, 1))), tensors() | python_values, max_size=2),
).map(lambda both: both[0] | both[1])


def make_views(value: dict[str, Any], folder: Path) -> object:
    views = Views(**value)
    assert views.present.shape == views.images.shape[:2]
    return views.select(torch.tensor([0]), [0]).token_mask((1, 1))


def make_map(value: tuple[Any, Any], folder: Path) -> object:
    made = FeatureMap(*value)
    assert made.sanitized().grid == made.grid
    return made


feature_maps = st.one_of(
    st.tuples(tensors(), tensors()),
    st.lists(st.integers(0, 3), min_size=5, max_size=5).map(
        lambda shape: (torch.zeros(shape), torch.ones(shape[:-1], dtype=torch.bool))
    ),
)


def make_poses(value: tuple[Any, Any], folder: Path) -> object:
    return PoseTable(*value)(torch.tensor([0, 1]))


def _poses(n: int, fill: Any) -> tuple[Tensor, Tensor]:
    poses = torch.eye(4).repeat(n, 1, 1)
    poses[:, :3] *= float(fill)
    return torch.arange(n), poses


poses = st.tuples(tensors(), tensors()) | st.builds(_poses, st.integers(0, 3), st.floats())


# ------------------------------------------------------------------------------------------------ the command line

option_texts = st.one_of(
    st.text(max_size=20),
    st.lists(st.tuples(st.text(max_size=5), hostile.raw_values), max_size=3).map(
        lambda each: ",".join(f"{key}={hostile.written(value).decode()}" for key, value in each)
    ),
    mutated(st.just({"size": 224, "config": "tiny"})).map(lambda value: hostile.written(value).decode()),
)


def read_options(value: str, folder: Path) -> object:
    return parse_options(value)


arguments = st.lists(
    st.one_of(
        st.sampled_from(("plugins", "teachers", "policies", "presets", "parity", "inspect", "--json", "--help")),
        st.sampled_from((*hostile.TEXTS, "FILE", "FILE.safetensors", "FILE.py:make", "--record", "--teacher", "vggt")),
        st.text(max_size=5),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def command_line(value: tuple[list[str], Place], folder: Path) -> object:
    words, place = value
    for name in ("file", "file.safetensors"):
        place.make(folder / name)
    words = [word.replace("FILE", str(folder / "file")) for word in words]
    heard = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        try:
            main(words)
        except SystemExit as error:
            if error.code:
                raise SfkitError(f"exit status {error.code}") from None
    return words


def parsers(tensor_files: st.SearchStrategy[Place]) -> list[Parser]:
    """Those of this module; the command line is given ``tensor_files``."""
    return [
        Parser("cameras.json", hostile.documents(st.just(CAMERAS)), load_cameras, 2),
        Parser("Camera", mutated(st.just(CAMERA), python_values), make_camera, 2),
        Parser("CameraRig", st.tuples(python_values, python_values), make_rig),
        Parser("Views", view_fields, make_views, 2),
        Parser("FeatureMap", feature_maps, make_map),
        Parser("PoseTable", poses, make_poses),
        Parser("options as text", option_texts, read_options),
        Parser("the command line", st.tuples(arguments, tensor_files), command_line, 0.2),
    ]
