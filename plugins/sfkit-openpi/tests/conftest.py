"""The tests run on a stand-in, or on openpi's own classes where those can be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "support"))  # at the end: openpi itself is found before its stand-in

from tiny_openpi import SIZE, STANDIN, tiny_observation, tiny_openpi

KINDS = ["standin-pi0", "standin-pi05"] if STANDIN else ["openpi-pi0", "openpi-pi05"]


@dataclass
class Setup:
    """A way to build policies and batches of one kind."""

    kind: str

    @property
    def size(self) -> int:
        return SIZE

    def build(self, *, checkpointing: bool = False, **config: Any) -> Any:
        """A policy, always with the same weights; ``checkpointing`` as openpi's trainer switches it on."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = tiny_openpi(pi05=self.kind.endswith("pi05"), **config)
        if checkpointing:
            policy.gradient_checkpointing_enable()
        return policy.train()

    def batch(self, b: int = 2, **options: Any) -> Any:
        return tiny_observation(b, **options)


@pytest.fixture(params=KINDS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@pytest.fixture
def standin() -> Setup:
    if not STANDIN:
        pytest.skip("openpi itself is installed")
    return Setup("standin-pi0")


@pytest.fixture
def wrap() -> Callable[..., Any]:
    """``wrap(policy, **arguments)``: aligned with a teacher without weights."""
    from sfkit import SpatialForcing
    from sfkit.testing.tiny import PatchTeacher

    def wrap(policy: Any, teacher: Any = None, **arguments: Any) -> Any:
        return SpatialForcing.wrap(policy, teacher or PatchTeacher(), **{"student_layer": 2, **arguments})

    return wrap


@pytest.fixture
def look() -> Callable[..., Any]:
    """``look(adapter, (observation, actions), layer=0, seed=1)``: views and visual tokens of a forward."""
    from sfkit.policies.base import ForwardCall
    from sfkit.training.taps import Taps, site_of

    def look(adapter: Any, batch: Any, layer: Any = 0, seed: int = 1) -> Any:
        site = site_of(layer)
        taps = Taps(adapter, [site])
        torch.manual_seed(seed)
        try:
            output, captured, inputs = taps.run(adapter.policy, batch, {})
        finally:
            taps.remove()
        with torch.no_grad():
            views = adapter.views(ForwardCall({"observation": batch[0], "actions": batch[1]}, output, inputs))
        return output, views, site.tokens(adapter, captured[site], views)

    return look
