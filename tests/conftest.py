"""Fixtures shared by the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Callable[..., TinyPolicy]:
    """Make a tiny policy whose weights depend on the seed alone."""

    def make(seed: int = 0, **options: Any) -> TinyPolicy:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TinyPolicy(**options)

    return make


@pytest.fixture
def wrapped(tiny: Callable[..., TinyPolicy]) -> Callable[..., TinyPolicy]:
    """Make a tiny policy and wrap it: ``wrapped(teacher=..., student_layer=..., policy={...})``."""

    def make(teacher: Any = None, *, policy: dict[str, Any] | None = None, **arguments: Any) -> TinyPolicy:
        plain = tiny(**(policy or {}))
        if teacher is None and "pairs" not in arguments:
            teacher = PatchTeacher()
        if "pairs" not in arguments:
            arguments.setdefault("student_layer", 2)
        return SpatialForcing.wrap(plain, teacher, adapter=TinyAdapter(plain), **arguments)

    return make
