"""What would train without alignment, or with too much of it, is said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, LossError, SfkitWarning, WrapError
from sfkit.testing.tiny import OutsidePolicy, PatchTeacher, TinyAdapter, loop_loss, tiny_batch

Make, Batch = Callable[..., Any], Callable[..., dict[str, torch.Tensor]]


def test_fault_13_a_loss_that_nobody_reads_is_no_place_to_join(make: Make) -> None:
    with pytest.raises(ConfigError, match="never reads a loss"):
        make(attach_loss="return")


def test_an_unknown_way(make: Make) -> None:
    with pytest.raises(ConfigError, match="attach_loss must be 'auto'"):
        make(attach_loss="rider")


@pytest.mark.parametrize("attach_loss", ["manual", "auto"])
def test_fault_13_add_that_is_never_called_is_noticed_at_the_second_step(
    attach_loss: str, make: Make, batch: Batch
) -> None:
    class LossIsElsewhere(TinyAdapter):
        def loss(self, output: Any) -> None:
            return None

    policy = make(attach_loss=attach_loss, adapter=LossIsElsewhere)
    loop_loss(policy(batch()), batch()).backward()
    with pytest.raises(LossError, match=r"(?s)never added.*add\(loss\)"):
        policy(batch())


def test_a_forward_without_backward_needs_no_add(make: Make, batch: Batch) -> None:
    policy = make(attach_loss="manual")
    for _ in range(3):
        policy(batch())


def test_add_beside_the_carrier_is_an_error(make: Make, batch: Batch) -> None:
    policy = make(attach_loss="backward")
    with pytest.raises(LossError, match="count it twice"):
        policy.spatial_forcing.add(loop_loss(policy(batch()), batch()))


def test_add_beside_a_joined_loss_is_an_error(wrapped: Make) -> None:
    policy = wrapped()
    with pytest.raises(LossError, match="already in the loss"):
        policy.spatial_forcing.add(policy(tiny_batch())[0])


def test_add_twice_is_an_error(make: Make, batch: Batch) -> None:
    policy = make()
    loss = policy.spatial_forcing.add(loop_loss(policy(batch()), batch()))
    with pytest.raises(LossError, match="called twice"):
        policy.spatial_forcing.add(loss)


def test_add_after_backward_is_an_error(make: Make, batch: Batch) -> None:
    policy = make()
    loss = loop_loss(policy(batch()), batch())
    loss.backward(retain_graph=True)
    with pytest.raises(LossError, match="after a backward pass"):
        policy.spatial_forcing.add(loss)


@pytest.mark.parametrize("attach_loss", ["manual", "auto"])
def test_fault_13_add_to_a_policy_in_a_reentrant_checkpoint_is_an_error(
    attach_loss: str, make: Make, batch: Batch
) -> None:
    policy = make(attach_loss=attach_loss)

    def run(images: torch.Tensor) -> torch.Tensor:
        return policy({**batch(), "images": images})["actions"][0]  # type: ignore[no-any-return]

    output = checkpoint(run, batch()["images"].requires_grad_(), use_reentrant=True)
    loss = policy.spatial_forcing.add(output.abs().mean())
    with pytest.raises(LossError, match=r"(?s)within a reentrant.*use_reentrant=False"):
        loss.backward()


def test_add_to_a_loss_of_other_samples_is_an_error(make: Make, batch: Batch) -> None:
    policy = make()
    with pytest.raises(LossError, match="batch of 2"):
        policy.spatial_forcing.add(policy(batch())["actions"][0].flatten())


def test_add_of_a_foreign_loss_is_an_error(make: Make, batch: Batch) -> None:
    policy = make()
    output = policy(batch())
    with pytest.raises(LossError, match="not computed"):
        policy.spatial_forcing.add(loop_loss(output, batch()).detach())


def test_fault_14_accumulation_that_was_not_told_is_warned_of_once(make: Make, batch: Batch) -> None:
    policy = make()

    def accumulate() -> None:
        for seed in range(4):
            (loop_loss(policy(batch(seed)), batch(seed)) / 4).backward()

    with pytest.warns(SfkitWarning, match="grad_accumulation=N") as said:
        accumulate()
    assert len(said) == 1


@pytest.mark.parametrize("options", [{"grad_accumulation": 1}, {"attach_loss": "manual"}])
def test_nothing_is_warned_of_where_nothing_is_unknown(options: dict[str, Any], make: Make, batch: Batch) -> None:
    policy = make(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            loss = loop_loss(policy(batch(seed)), batch(seed))
            (policy.spatial_forcing.add(loss) if "attach_loss" in options else loss).backward()


def test_ordinary_steps_are_not_taken_for_accumulation(make: Make, batch: Batch) -> None:
    policy = make()
    optimizer = torch.optim.SGD(policy.parameters(), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            optimizer.zero_grad()
            loop_loss(policy(batch(seed)), batch(seed)).backward()
            optimizer.step()


def test_fault_14_a_scaler_that_was_not_told_is_warned_of_once(make: Make, batch: Batch) -> None:
    policy = make()
    with torch.autocast("cpu", torch.bfloat16):
        policy(batch())
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has no float16 autocast for CPUs")
    with torch.autocast("cpu", torch.float16), pytest.warns(SfkitWarning, match="GradScaler"):
        policy(batch())
    with torch.autocast("cpu", torch.float16), warnings.catch_warnings():
        warnings.simplefilter("error")
        policy(batch())


def test_zero_3_is_refused(make: Make) -> None:
    plain = OutsidePolicy()
    plain.head.weight.ds_id = 0
    with pytest.raises(WrapError, match="ZeRO-3"):
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))


def test_metrics_know_the_action_loss_once_it_is_known(make: Make, batch: Batch) -> None:
    policy = make()
    loss = loop_loss(policy(batch()), batch())
    assert "action_loss" not in policy.spatial_forcing.metrics()
    policy.spatial_forcing.add(loss)
    assert policy.spatial_forcing.metrics()["action_loss"] == pytest.approx(loss.item())


def test_fault_55_each_of_two_policies_adds_its_own(make: Make, batch: Batch) -> None:
    one, two = make(weight=0.3), make(weight=0.7)
    loss = loop_loss(one(batch()), batch()) + loop_loss(two(batch()), batch())
    both = two.spatial_forcing.add(one.spatial_forcing.add(loss))
    alignments = [policy.spatial_forcing.metrics()["sf_loss"] for policy in (one, two)]
    assert (both - loss).item() == pytest.approx(0.3 * alignments[0] + 0.7 * alignments[1])


def test_a_policy_is_copied_in_the_middle_of_a_scaled_step(make: Make, batch: Batch) -> None:
    """``GradScaler`` refuses to be copied there; an exponential moving average has no use for one."""
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has a GradScaler for CUDA alone")
    policy, scaler = make(), torch.amp.GradScaler("cpu")
    policy.spatial_forcing.scaler = scaler
    scaler.scale(loop_loss(policy(batch()), batch())).backward()
    scaler.unscale_(torch.optim.SGD(policy.parameters(), 1e-3))
    assert copy.deepcopy(policy).spatial_forcing.scaler is None
    assert policy.spatial_forcing.scaler is scaler


def test_a_copy_is_not_in_the_middle_of_a_step(make: Make, batch: Batch) -> None:
    policy = make()
    loss = loop_loss(policy(batch()), batch())
    other = copy.deepcopy(policy)
    assert other.spatial_forcing.add(loss.detach()) is not None
    other(batch())
