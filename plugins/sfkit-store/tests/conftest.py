"""A tiny policy whose adapter names its frames, its frames, and a store of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sfkit_store import Store, build_store

from sfkit.policies.base import ForwardCall
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.views.types import Views

GRID = (4, 4)
SOURCE = "local/toy@0123456789abcdef"
FRAMES = 12


class KeyedAdapter(TinyAdapter):
    """The adapter of a policy whose batches name their frames."""

    def views(self, call: ForwardCall) -> Views:
        return replace(super().views(call), keys=call.arguments["batch"].get("keys"))


def batch_of(indices: Sequence[int], source: str = SOURCE) -> dict[str, Any]:
    """Frames of a dataset: each has pictures of its own, two episodes of six."""
    frames = [tiny_batch(1, seed=index) for index in indices]
    batch: dict[str, Any] = {key: torch.cat([frame[key] for frame in frames]) for key in frames[0]}
    return {**batch, "keys": tuple((source, index // 6, index % 6) for index in indices)}


class Frames:
    """A source of frames that counts those it loads."""

    pixels = "policy tiny"

    def __init__(self, count: int = FRAMES, batch_size: int = 2, source: str = SOURCE) -> None:
        self.batch_size, self.loaded = batch_size, list[int]()
        self.count, self.source = count, source
        self.datasets = {source.partition("@")[0]: "main"}
        self.adapter = KeyedAdapter(TinyPolicy())

    @property
    def keys(self) -> list[tuple[str, int, int]]:
        return [(self.source, index // 6, index % 6) for index in range(self.count)]

    def views(self, indices: Sequence[int]) -> Iterator[Views]:
        for start in range(0, len(indices), self.batch_size):
            some = list(indices[start : start + self.batch_size])
            self.loaded += some
            yield self.adapter.views(ForwardCall({"batch": batch_of(some, self.source)}, None))


def build(folder: Path, frames: Any = None, **options: Any) -> Store:
    """A store of shards of four frames."""
    teacher = options.pop("teacher", None) or PatchTeacher()
    frames = Frames() if frames is None else frames
    options = {"grid": GRID, "teacher_layers": (2, 3), "shard_bytes": 4 * 3600, **options}
    return build_store(folder, teacher, frames, **options)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The helpers above."""
    return SimpleNamespace(
        Adapter=KeyedAdapter, Frames=Frames, batch_of=batch_of, build=build, SOURCE=SOURCE, FRAMES=FRAMES, GRID=GRID
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a store that is built."""
    build(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def wrapped() -> Callable[..., Any]:
    """``wrapped(teacher, **arguments)``: a policy, always with the same weights, aligned with that teacher."""
    from sfkit import SpatialForcing

    def wrapped(teacher: Any, **arguments: Any) -> Any:
        torch.manual_seed(0)
        policy = TinyPolicy()
        return SpatialForcing.wrap(policy, teacher, adapter=KeyedAdapter(policy), student_layer=2, **arguments)

    return wrapped
