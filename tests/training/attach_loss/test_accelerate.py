"""Losses inside and outside the policy in a loop of the real accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import OutsideAdapter, OutsidePolicy, TinyAdapter, TinyPolicy, loop_loss

accelerate = pytest.importorskip("accelerate")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fault_14_accumulation_and_mixed_precision(
    precision: str, make: Callable[..., Any], batch: Callable[..., Any], gradients: Callable[..., Any]
) -> None:
    """What rides on the outputs is what ``add`` gives, to the last bit that bfloat16 outputs have."""

    def run(attach_loss: str, **options: Any) -> dict[str, torch.Tensor]:
        policy = make(attach_loss=attach_loss, **options).float()
        # The precision is the process's own, and settled by its first accelerator.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        prepared = accelerator.prepare(policy)
        for seed in range(2):
            data = {key: value.float() for key, value in batch(seed).items()}
            with accelerator.accumulate(prepared):
                loss = loop_loss(prepared(data), data)
                accelerator.backward(policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss)
        return gradients(policy)

    one, two = run("auto", grad_accumulation=2), run("manual")
    assert_rounded(one, two)
    assert two["spatial_forcing.pairs.0.projector.fc1.weight"].abs().sum() > 0


@pytest.mark.parametrize("attach_loss", ["return", "backward", "manual"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fault_14_accelerate_trains_the_explicit_sum(
    precision: str, attach_loss: str, make: Callable[..., Any], batch: Callable[..., Any], by_hand: Callable[..., Any],
    gradients: Callable[..., Any],
) -> None:  # fmt: skip
    """Two batches a step: the gradient is that of the alignment loss added by hand in the same precision."""
    inside = attach_loss == "return"
    kinds: Any = (TinyPolicy, TinyAdapter) if inside else (OutsidePolicy, OutsideAdapter)

    def run(explicit: bool) -> dict[str, torch.Tensor]:
        policy = make(kind=kinds[0], adapter=kinds[1], attach_loss=attach_loss, grad_accumulation=2).float()
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        prepared = accelerator.prepare(policy)
        for seed in range(2):
            data = {key: value.float() for key, value in batch(seed).items()}
            with accelerator.accumulate(prepared):
                output, extra = by_hand(prepared, data) if explicit else (prepared(data), 0.0)
                loss = output[0] if inside else loop_loss(output, data)
                adds = attach_loss == "manual" and not explicit
                accelerator.backward(policy.spatial_forcing.add(loss) if adds else loss + extra)
        return gradients(policy)

    one, two = run(explicit=False), run(explicit=True)
    assert one.keys() == two.keys()
    assert any("projector" in name for name in one)
    if precision == "no":
        assert_rounded(one, two)
        return
    for name, value in one.items():
        # The two losses meet in another order at the tapped tokens, which bfloat16 rounds by 2**-8.
        assert (value - two[name]).norm() <= 4 * 2**-8 * two[name].norm() + 1e-7, name
