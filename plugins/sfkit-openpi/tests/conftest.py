"""The same tests run on the stand-in and, where openpi can be imported, on its own classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sfkit_openpi.tiny import openpi_is_here

KINDS = ["standin-pi0", "standin-pi05", "openpi-pi0", "openpi-pi05"]


@dataclass
class Setup:
    """A way to build policies and batches of one kind."""

    kind: str

    @property
    def size(self) -> int:
        return 56 if self.kind.startswith("standin") else 224

    def build(self, *, checkpointing: bool = False, **config: Any) -> Any:
        """A policy, always with the same weights; ``checkpointing`` as openpi's trainer switches it on."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if self.kind.startswith("standin"):
                from sfkit.testing.openpi import PI0Pytorch, TinyConfig

                policy: Any = PI0Pytorch(TinyConfig(pi05=self.kind.endswith("pi05"), **config))
            else:
                from sfkit_openpi.tiny import tiny_openpi

                policy = tiny_openpi(pi05=self.kind.endswith("pi05"), **config)
        if checkpointing:
            policy.gradient_checkpointing_enable()
        return policy.train()

    def batch(self, b: int = 2, **options: Any) -> Any:
        from sfkit.testing.openpi import tiny_observation

        return tiny_observation(b, size=self.size, **options)


@pytest.fixture(params=KINDS)
def setup(request: pytest.FixtureRequest) -> Setup:
    if request.param.startswith("openpi") and not openpi_is_here():
        pytest.skip("openpi is not installed")
    return Setup(request.param)


@pytest.fixture
def standin() -> Setup:
    return Setup("standin-pi0")


@pytest.fixture
def wrap() -> Callable[..., Any]:
    """``wrap(policy, **arguments)``: aligned with a teacher without weights."""
    from sfkit import SpatialForcing
    from sfkit.testing.teachers import PatchTeacher

    def wrap(policy: Any, teacher: Any = None, **arguments: Any) -> Any:
        return SpatialForcing.wrap(policy, teacher or PatchTeacher(), **{"student_layer": 2, **arguments})

    return wrap


@pytest.fixture
def look() -> Callable[..., Any]:
    """``look(adapter, (observation, actions), layer=0, seed=1)``: views and visual tokens of a forward."""
    from sfkit.alignment.tap import Watch, tap_at, tokens_at
    from sfkit.policies.base import ForwardCall

    def look(adapter: Any, batch: Any, layer: Any = 0, seed: int = 1) -> Any:
        tap = tap_at(adapter, layer)
        watches = {name: Watch(point) for name, point in adapter.watched().items()}
        hooks = (tap, *watches.values())
        for hook in hooks:
            hook.arm()
        torch.manual_seed(seed)
        try:
            output = adapter.policy(*batch)
            captured, inputs = tap.take(), {name: watch.take() for name, watch in watches.items()}
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            views = adapter.views(ForwardCall({"observation": batch[0], "actions": batch[1]}, output, inputs))
        return output, views, tokens_at(adapter, layer, captured, views)

    return look
