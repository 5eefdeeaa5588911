"""The parsers of the plugins that run on any Python: weights, fixtures, and targets of the tools."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hostile
import torch
from hostile import Place, mutated
from hypothesis import strategies as st
from running import Parser
from torch import nn

from sfkit.factory.components import build_teacher
from sfkit.registry.registry import default_registry


def parsers() -> list[Parser]:
    """Those of sfkit-backbones, sfkit-tools, and the teachers and readers of fixtures that are installed."""
    found: list[Parser] = []
    if find_spec("sfkit_backbones"):
        found += _backbones()
    if find_spec("sfkit_tools"):
        found.append(Parser("targets of the tools", targets, load_target))
    return found


# --------------------------------------------------------------------------------------------------------- weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@cache
def weights() -> Mapping[str, torch.Tensor]:
    torch.manual_seed(0)
    return network().state_dict()


def _saved(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return save(dict(tensors), metadata)


def load_weights(suffix: str) -> Callable[[Place, Path], object]:
    from sfkit_backbones.weights import load_weights as load
    from sfkit_backbones.weights import without_weights

    def read(place: Place, folder: Path) -> object:
        place.make(folder / f"weights{suffix}")
        with without_weights():
            empty = network()
        load(empty, folder / f"weights{suffix}")
        assert all(bool(value.isfinite().all()) for value in empty.state_dict().values())
        return empty

    return read


def locate_weights(value: tuple[str, Any, Any], folder: Path) -> object:
    from sfkit_backbones.hub import Source, locate

    where, revision, sha256 = value
    return locate(Source("owner/model"), where.replace("FOLDER", str(folder)), revision, sha256)


def build_with(suffix: str) -> Callable[[tuple[str, Place], Path], object]:
    """Build a teacher whose option ``weights`` names a hostile file, and load it."""

    def read(value: tuple[str, Place], folder: Path) -> object:
        name, place = value
        place.make(folder / f"weights{suffix}")
        teacher = build_teacher((name, {"weights": str(folder / f"weights{suffix}")}))
        return teacher.load(torch.device("cpu"))

    return read


# -------------------------------------------------------------------------------------------------------- fixtures


@cache
def fixtures() -> list[bytes]:
    """A recorded fixture of each family that is installed."""
    from sfkit_backbones.parity import record

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (("vggt", "tiny"), ("da3-small", "tiny"), ("dust3r", "tiny")):
            if any(entry.name == name for entry in default_registry().of_kind("teacher")):
                path = Path(folder) / f"{name}.safetensors"
                record(build_teacher((name, {"config": config})), path, seed=0, stream=1.0)
                found.append(path.read_bytes())
    tensors = {"sd.weight": torch.zeros(2), "a.in.x": torch.zeros(1), "a.out.y": torch.zeros(1)}
    return [*found, _saved(tensors, {"config": '{"model": "unknown"}', "cases": '["a"]'})]


@st.composite
def fixture_files(draw: st.DrawFn) -> bytes:
    """A fixture whose tensors, or whose config and cases, are changed."""
    import json
    import struct

    good = draw(st.sampled_from(fixtures()))
    if draw(st.booleans()):
        return draw(hostile.tensor_files(good))
    (size,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + size])
    for key in ("config", "cases"):
        value = draw(mutated(st.just(json.loads(header["__metadata__"][key]))))
        header["__metadata__"][key] = hostile.written(value).decode()
    return hostile.safetensors_bytes(header, good[8 + size :])


def read_fixture(place: Place, folder: Path) -> object:
    from sfkit_backbones.parity import Fixture, compare

    place.make(folder / "fixture.safetensors")
    return compare(Fixture.load(folder / "fixture.safetensors"))


def _backbones() -> list[Parser]:
    tensors = hostile.places(hostile.tensor_files(_saved(weights())))
    pickles = hostile.places(hostile.pickles(weights()))
    names = st.sampled_from((*hostile.TEXTS, "FOLDER", "FOLDER/x", "FOLDER/x.pth", "x.safetensors"))
    return [
        Parser("weights in .safetensors", tensors, load_weights(".safetensors"), 2),
        Parser("weights in .pth", pickles, load_weights(".pth"), 2),
        Parser("weights in .bin", pickles, load_weights(".bin"), 0.5),
        Parser("weights with another suffix", tensors, load_weights(".ckpt"), 0.1),
        Parser(
            "where weights lie",
            st.tuples(names, st.none() | st.sampled_from(hostile.TEXTS), st.none()),
            locate_weights,
            0.3,
        ),
        Parser("fixtures of parity", hostile.places(fixture_files()), read_fixture, 0.5),
    ]


# ----------------------------------------------------------------------------------------------------------- tools

targets = st.one_of(
    st.sampled_from(hostile.TEXTS),
    st.text(max_size=10),
    st.tuples(st.sampled_from(("math", "os.path", "..", ".a", "a.", "FOLDER", "FOLDER/x.py", "", *hostile.TEXTS)),
              st.sampled_from(("tau", "sep", "", " ", "x.y", "\ud800", "__doc__", *hostile.TEXTS))).map(":".join),
)  # fmt: skip


def load_target(value: str, folder: Path) -> object:
    import sys

    from sfkit_tools.loading import load_target as load

    before = list(sys.path)
    try:
        return load(value.replace("FOLDER", str(folder)))
    finally:
        sys.path[:] = before
