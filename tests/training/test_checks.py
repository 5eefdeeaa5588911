"""The first-batch self-check (faults 6, 8, 9, 10, 26)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit import SfkitWarning
from sfkit.errors import GradientError, ViewsError
from sfkit.projectors.standard import MLPProjector
from sfkit.testing.tiny import TinyPolicy, tiny_batch


def step(policy: TinyPolicy, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    policy(tiny_batch(seed=seed))[0].backward()
    optimizer.step()


def freeze_all_but_state(policy: TinyPolicy) -> None:
    """As SmolVLA's defaults do: everything that the visual tokens depend on is frozen."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith(("state_proj", "head", "spatial_forcing")))


def test_fault_06_a_frozen_backbone_is_an_error_although_the_tap_requires_grad(tiny: Callable[..., Any]) -> None:
    from sfkit import SpatialForcing
    from sfkit.testing.tiny import PatchTeacher, TinyAdapter

    policy = tiny()
    freeze_all_but_state(policy)
    seen = []
    policy.blocks[2].input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    SpatialForcing.wrap(policy, PatchTeacher(), student_layer=2, adapter=TinyAdapter(policy))
    with pytest.raises(GradientError, match="student layer 2 reaches no trainable parameter"):
        policy(tiny_batch())
    assert seen == [True], "the naive test passes here, which is the point"
    with pytest.raises(GradientError):
        policy(tiny_batch())


def test_fault_06_one_trainable_layer_before_the_tap_is_enough(wrapped: Callable[..., Any]) -> None:
    policy = wrapped()
    freeze_all_but_state(policy)
    policy.embed.requires_grad_(True)
    policy(tiny_batch())
    assert policy.spatial_forcing.status().reaches_policy is True


def test_fault_06_layers_after_the_tap_do_not_count(wrapped: Callable[..., Any]) -> None:
    policy = wrapped(student_layer=1)
    freeze_all_but_state(policy)
    policy.blocks[1].requires_grad_(True)
    policy.blocks[2].requires_grad_(True)
    with pytest.raises(GradientError, match="student layer 1"):
        policy(tiny_batch())


@pytest.mark.parametrize("layers", [(0, 2), (2, 0)])
def test_fault_06_every_layer_is_checked(wrapped: Callable[..., Any], layers: tuple[int, int]) -> None:
    policy = wrapped(pairs=[(layer, "geometry") for layer in layers])
    freeze_all_but_state(policy)
    policy.blocks[1].requires_grad_(True)
    with pytest.raises(GradientError, match="student layer 0 reaches no trainable parameter"):
        policy(tiny_batch())


def test_the_check_costs_nothing_after_the_first_batch(wrapped: Callable[..., Any], monkeypatch: Any) -> None:
    policy = wrapped()
    policy(tiny_batch())
    calls: list[Any] = []
    monkeypatch.setattr("sfkit.training.checks.find_trained_leaf", calls.append)
    policy(tiny_batch())
    assert calls == []


def test_fault_09_an_optimizer_built_before_wrap_is_found_out(tiny: Callable[..., Any]) -> None:
    from sfkit import SpatialForcing
    from sfkit.testing.tiny import PatchTeacher, TinyAdapter

    policy = tiny()
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3)
    SpatialForcing.wrap(policy, PatchTeacher(), student_layer=2, adapter=TinyAdapter(policy))
    step(policy, optimizer)
    step(policy, optimizer)
    with pytest.raises(GradientError, match="never the projector"):
        step(policy, optimizer)


def test_fault_10_parameter_groups_without_the_projector_are_found_out(wrapped: Callable[..., Any]) -> None:
    policy = wrapped()
    groups = [{"params": [p for n, p in policy.named_parameters() if not n.startswith("spatial_forcing")]}]
    optimizer = torch.optim.SGD(groups, 1e-2)
    step(policy, optimizer)
    step(policy, optimizer)
    with pytest.raises(GradientError, match="never the projector"):
        step(policy, optimizer)


def test_fault_10_clipping_the_policy_clips_the_projector(wrapped: Callable[..., Any]) -> None:
    policy = wrapped()
    policy(tiny_batch())[0].backward()
    inside = {id(parameter) for parameter in policy.parameters()}
    assert all(id(parameter) in inside for parameter in policy.spatial_forcing.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_right_optimizer_is_recognized(wrapped: Callable[..., Any], optimizer: Any, foreach: bool) -> None:
    policy = wrapped()
    built = optimizer(policy.parameters(), 1e-3, foreach=foreach)
    for seed in range(3):
        step(policy, built, seed)
    assert policy.spatial_forcing.status().projector_moved is True


def test_accumulating_for_long_is_no_fault(wrapped: Callable[..., Any]) -> None:
    policy = wrapped()
    for seed in range(6):
        policy(tiny_batch(seed=seed))[0].backward()
    assert policy.spatial_forcing.status().projector_moved is None


def test_fault_08_a_projector_frozen_after_the_wrap_is_an_error(wrapped: Callable[..., Any]) -> None:
    policy = wrapped()
    policy.spatial_forcing.requires_grad_(False)
    with pytest.raises(GradientError, match="projector is frozen"):
        policy(tiny_batch())


@pytest.mark.parametrize(("scale", "shift"), [(2.0, -1.0), (255.0, 0.0)])
def test_fault_26_images_outside_0_1_are_an_error(wrapped: Callable[..., Any], scale: float, shift: float) -> None:
    policy, batch = wrapped(), tiny_batch()
    batch["images"] = batch["images"] * scale + shift
    with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
        policy(batch)


def test_fault_26_nan_images_are_an_error(wrapped: Callable[..., Any]) -> None:
    policy, batch = wrapped(), tiny_batch()
    batch["images"][0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ViewsError, match="NaN"):
        policy(batch)


def test_what_is_masked_may_hold_anything(wrapped: Callable[..., Any]) -> None:
    policy, batch = wrapped(), tiny_batch()
    batch["present"] = torch.tensor([[True, False], [True, False]])
    batch["images"][:, 1] = -1.0
    policy(batch)


def test_the_check_can_be_switched_off(wrapped: Callable[..., Any]) -> None:
    policy = wrapped(self_check=False)
    freeze_all_but_state(policy)
    policy(tiny_batch())
    assert policy.spatial_forcing.status().reaches_policy is None


def test_a_batch_without_valid_tokens_warns_and_the_check_waits(wrapped: Callable[..., Any]) -> None:
    policy, batch = wrapped(), tiny_batch()
    batch["present"] = torch.zeros(2, 2, dtype=torch.bool)
    with pytest.warns(SfkitWarning, match="No visual token of this batch could be aligned"):
        loss, info = policy(batch)
    assert info["sf_loss"] == 0
    assert loss.isfinite()
    assert policy.spatial_forcing.status().reaches_policy is None
    policy(tiny_batch())
    assert policy.spatial_forcing.status().reaches_policy is True


@pytest.mark.parametrize("part", ["fc1.weight", "norm.bias"])
def test_fault_08_a_part_of_the_projector_frozen_after_wrap_is_named(wrapped: Callable[..., Any], part: str) -> None:
    policy = wrapped()
    policy.get_parameter(f"spatial_forcing.pairs.0.projector.{part}").requires_grad_(False)
    with pytest.raises(GradientError, match=rf"frozen after the wrap \(pairs\.0\.projector\.{part}\)"):
        policy(tiny_batch())


def test_a_part_that_was_frozen_before_the_wrap_is_no_fault(wrapped: Callable[..., Any]) -> None:
    projector = MLPProjector(16, 12)
    projector.fc1.requires_grad_(False)
    policy = wrapped(projector=projector)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], 1e-2)
    for seed in range(3):
        step(policy, optimizer, seed)
    assert policy.spatial_forcing.status().projector_moved is True
