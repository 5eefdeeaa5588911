"""torch.compile after the wrap, of the whole policy and of its layers: gradients against the explicit sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sfkit.testing.tiny import OutsideAdapter, OutsidePolicy, TinyAdapter, TinyPolicy, loop_loss

pytestmark = pytest.mark.filterwarnings(
    # torch._dynamo asks tensors for their gradient before it knows whether they are leaves.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:sfkit could not verify the gradient path",
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("attach_loss", ["return", "backward", "manual"])
@pytest.mark.parametrize("how", ["whole", "layers"])
def test_compiled_after_the_wrap(
    how: str, attach_loss: str, by_hand: Callable[..., Any], make: Callable[..., Any], batch: Callable[..., Any],
    gradients: Callable[..., Any], same: Callable[..., None],
) -> None:  # fmt: skip
    """Two steps, as what is compiled with the first must serve the second."""
    inside = attach_loss == "return"
    kinds: Any = (TinyPolicy, TinyAdapter) if inside else (OutsidePolicy, OutsideAdapter)
    kind = {"kind": kinds[0], "adapter": kinds[1], "grad_accumulation": 1, "policy": {"fused": False}}
    policy, other = make(attach_loss=attach_loss, **kind), make(**kind)
    run: Any = torch.compile(policy, backend="aot_eager") if how == "whole" else policy
    if how == "layers":
        for block in policy.blocks:
            block.compile(backend="aot_eager")

    def loss_of(output: Any, data: Any) -> torch.Tensor:
        return output[0] if inside else loop_loss(output, data)

    for seed in range(2):
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            loss = loss_of(run(batch(seed)), batch(seed))
        (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward()
        output, alignment = by_hand(other, batch(seed))
        (loss_of(output, batch(seed)) + alignment).backward()
    assert any("projector" in name for name in gradients(policy))
    same(gradients(policy), gradients(other))
