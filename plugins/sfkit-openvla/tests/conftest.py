"""The policies under test: stand-ins, or tiny ones of upstream's own classes.

The latter where ``SFKIT_OPENVLA_SOURCE`` names a checkout of them, or one is installed: the same tests then run on
those, and what concerns the other repository, or the stand-ins, is skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit import SpatialForcing
from sfkit.testing.tiny import PatchTeacher

SUPPORT = Path(__file__).parent / "support"
sys.path.append(str(SUPPORT))  # at the end: a package of upstream's is found before its stand-in

import tiny_prismatic  # noqa: E402
from prismatic_loop import Heads, prismatic_batch, prismatic_loss  # noqa: E402


def source() -> str | None:
    """The checkout that is named or installed."""
    spec = importlib.util.find_spec("prismatic")
    installed = Path(spec.origin).parents[1] if spec is not None and spec.origin else SUPPORT
    return os.environ.get("SFKIT_OPENVLA_SOURCE") or (None if installed == SUPPORT else str(installed))


SOURCE = source()
#: OFT's script calls the policy in the same way for its three heads, but for the noise of diffusion.
LOOPS = ("openvla", "oft-l1", "oft-diffusion", "oft-discrete")


@functools.cache
def upstream() -> Any:
    from prismatic_checkout import Upstream

    return Upstream(SOURCE or "")


@dataclass
class Script:
    """One of upstream's training scripts, small: the policy, what stands beside it, its batches and its loss."""

    loop: str
    images: int = 1
    film: bool = False
    proprio: bool = True
    real: bool = False

    @property
    def oft(self) -> bool:
        return self.loop != "openvla"

    @property
    def loss_outside(self) -> bool:
        return self.loop in ("oft-l1", "oft-diffusion")

    def config(self, **changes: Any) -> tiny_prismatic.TinyConfig:
        if not self.real:
            return tiny_prismatic.TinyConfig(**{"both_ways": self.oft, **changes})
        from prismatic_checkout import upstream_config

        return upstream_config(**changes)

    def policy(self, cls: Any = None, **changes: Any) -> Any:
        """Always with the same weights; ``cls`` is where upstream's class was loaded from, if not from the checkout."""
        if self.real:
            policy = upstream().policy(self.config(**changes), images=self.images, cls=cls)
        elif self.oft:
            policy = tiny_prismatic.tiny_oft(images=self.images, **changes)
        else:
            policy = tiny_prismatic.tiny_openvla(**changes)
        if self.film:
            self.add_film(policy)
        return policy.train()

    def add_film(self, policy: Any) -> None:
        """After LoRA, as upstream does."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            tiny_prismatic.add_film(policy)

    def heads(self) -> Any:
        if not self.oft:
            return None
        if not self.real:
            return Heads(self.config())
        from prismatic_checkout import UpstreamHeads

        return UpstreamHeads(upstream(), self.config())

    def batch(self, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
        return prismatic_batch(self.config(**changes), images=self.images, seed=seed)

    def loss(self, policy: Any, batch: Any, heads: Any = None) -> Tensor:
        """The loss of the script, from a fixed random state."""
        torch.manual_seed(7)
        head: Any = self.loop.partition("-")[2] or "discrete"
        heads = self.heads() if self.oft and heads is None else heads
        return prismatic_loss(policy, batch, heads=heads, head=head, film=self.film, proprio=self.proprio)


class Looped(nn.Module):
    """A policy together with its script, called with a batch alone: what the spatial correspondence check needs."""

    def __init__(self, script: Script, policy: nn.Module) -> None:
        super().__init__()
        self.script, self.policy = script, policy

    def forward(self, batch: Any) -> Tensor:
        return self.script.loss(self.policy, batch)


@pytest.fixture
def script() -> Callable[..., Script]:
    """``script(loop, images=..., film=...)``."""

    def make(loop: str, **options: Any) -> Script:
        if SOURCE and upstream().is_oft != (loop != "openvla"):
            pytest.skip("the checkout is of the other repository")
        return Script(loop, real=bool(SOURCE), **options)

    return make


@pytest.fixture
def standins() -> ModuleType:
    """What makes stand-ins."""
    if SOURCE:
        pytest.skip("upstream's own package has the name of the stand-in")
    return tiny_prismatic


@pytest.fixture
def checkout() -> Any:
    """Upstream's own code, where it is named."""
    if not SOURCE:
        pytest.skip("needs a checkout of upstream")
    return upstream()


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wrap() -> Callable[..., Any]:
    """``wrap(policy, **arguments)``, with a teacher that costs nothing."""

    def wrap(policy: Any, teacher: Any = None, **arguments: Any) -> Any:
        return SpatialForcing.wrap(policy, teacher or PatchTeacher(), **arguments)

    return wrap


@pytest.fixture
def looped() -> type[Looped]:
    return Looped


@pytest.fixture
def adapter_of() -> Callable[..., Any]:
    """``adapter_of(policy, **options)``: its adapter, as wrap finds it."""
    from sfkit.factory.components import build_adapter

    def adapter_of(policy: Any, **options: Any) -> Any:
        return build_adapter(policy, ("openvla", options) if options else None)

    return adapter_of


@pytest.fixture
def views_of() -> Callable[..., Any]:
    """``views_of(adapter, batch, **arguments)``: what the student sees of a batch."""
    from sfkit.policies.base import ForwardCall

    def views_of(adapter: Any, batch: Any, **arguments: Any) -> Any:
        call = {"proprio": None, **batch, **arguments}
        with torch.no_grad():
            return adapter.views(ForwardCall(call, None))

    return views_of
