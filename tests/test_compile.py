"""torch.compile after the wrap (fault 45). Graph breaks are expected: the alignment stays in Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import TapError
from sfkit.testing.tiny import TinyPolicy, tiny_batch
from sfkit.training.taps import Residual

pytestmark = pytest.mark.filterwarnings("default")  # dynamo warns about its own business while tracing


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(policy: TinyPolicy, call: Any) -> list[tuple[float, float, int]]:
    """Four steps, the second of them without alignment: a hook that is absent there is never seen again by torch."""
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    seen = []
    for seed in range(4):
        torch.manual_seed(seed)
        policy.spatial_forcing.taps.at[Residual(2)].fired = 0
        with SpatialForcing.disabled(policy) if seed == 1 else contextlib.nullcontext():
            loss, info = call(tiny_batch(seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(
            (loss.item(), info["sf_loss"] if seed != 1 else 0.0, policy.spatial_forcing.taps.at[Residual(2)].fired)
        )
    return seen


@pytest.mark.parametrize("how", ["module", "method", "inner"])
def test_fault_45_every_step_of_a_compiled_policy_aligns(wrapped: Callable[..., TinyPolicy], how: str) -> None:
    eager, policy = wrapped(), wrapped()
    call: Any = policy
    if how == "module":
        call = torch.compile(policy, backend="aot_eager")
    elif how == "method":
        policy.compile(backend="aot_eager")
    else:  # as LeRobot's compile_model does with the inner model's forward
        policy.act = torch.compile(policy.act, backend="aot_eager")  # type: ignore[method-assign]
    wanted, got = run(eager, eager), run(policy, call)
    for one, two in zip(wanted, got, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert [fired for _, _, fired in got] == [1, 0, 1, 1]


def test_fault_45_layers_compiled_one_by_one_are_tapped(wrapped: Callable[..., TinyPolicy]) -> None:
    # torch reuses one block's graph for the next unless hooks are guarded: either it works, or it is a clear error.
    policy = wrapped()
    for block in policy.blocks:
        block.forward = torch.compile(block.forward, backend="aot_eager")  # type: ignore[method-assign]
    with contextlib.suppress(TapError):
        assert [fired for _, _, fired in run(policy, policy)] == [1, 0, 1, 1]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        policy = wrapped()
        for block in policy.blocks:
            block.forward = torch.compile(block.forward, backend="aot_eager")  # type: ignore[method-assign]
        assert [fired for _, _, fired in run(policy, policy)] == [1, 0, 1, 1]
