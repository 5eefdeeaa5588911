"""Where hidden states are read, against independent forwards of the same decoders."""

from __future__ import annotations

import pytest
import torch
from sfkit_lerobot.testing import tiny_lerobot_batch

from sfkit.errors import GradientError
from sfkit.training.taps import Tap


def test_fault_05_every_tap_is_the_hidden_state_of_its_name(kind, build, adapter_of, tapped, decoder_run) -> None:
    # SmolVLA adds the residual to the MLP's output in place: a tap there would hold the next state.
    policy = build(kind)
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    output = decoder_run(policy, kind, adapter.decoder, batch)
    states, normed = output.hidden_states, output.last_hidden_state
    assert adapter.num_layers == 4
    for layer in range(adapter.num_layers):
        hidden, _, _ = tapped(adapter, batch, layer)
        torch.testing.assert_close(hidden, states[layer], atol=2e-6, rtol=1e-5)
    last, _, _ = tapped(adapter, batch, adapter.num_layers)
    after_norm = adapter.decoder.norm(last)
    torch.testing.assert_close(
        after_norm[0] if isinstance(after_norm, tuple) else after_norm, normed, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("how", ["call", "forward"])
def test_fault_01_and_02_taps_fire_once_in_each_forward(kind, how, build, adapter_of) -> None:
    policy = build(kind)
    adapter, fired = adapter_of(policy), []
    for block in adapter.decoder.layers:
        block.register_forward_hook(lambda *_: fired.append("block"))
    policy.register_forward_hook(lambda *_: fired.append("policy"))
    taps = [Tap(layer, adapter.tap(layer)) for layer in range(adapter.num_layers + 1)]
    for tap in taps:
        tap.arm()
    batch = tiny_lerobot_batch(policy)
    policy(batch) if how == "call" else policy.forward(batch)
    assert [tap.fired for tap in taps] == [1] * len(taps)
    assert ("policy" in fired) is (how == "call")
    # pi0-FAST has no action expert beside its decoder, and calls the decoder as a whole.
    assert fired.count("block") == (adapter.num_layers if kind == "pi0_fast" else 0)


@pytest.mark.parametrize("how", ["call", "forward"])
def test_fault_02_alignment_runs_by_call_and_by_forward(kind, how, build, wrap) -> None:
    policy = wrap(build(kind))
    batch = tiny_lerobot_batch(policy, geometry=True)
    loss, info = policy(batch) if how == "call" else policy.forward(batch)
    assert float(loss.detach()) == pytest.approx(info["action_loss"] + 0.5 * info["sf_loss"], rel=1e-5)
    assert policy.spatial_forcing.steps == 1


def test_the_path_of_a_tap_leads_to_its_module(kind, build, adapter_of) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    for layer in range(adapter.num_layers + 1):
        point = adapter.tap(layer)
        assert policy.get_submodule(point.path) is point.module
        assert adapter.dim(layer) == 64


def test_alignment_gradient_reaches_only_below_the_tap(kind, build, adapter_of, tapped) -> None:
    policy, layer = build(kind), 2
    adapter = adapter_of(policy)
    _, _, student = tapped(adapter, tiny_lerobot_batch(policy), layer)
    student.values.square().sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
    below = {f"{adapter.decoder_path}.layers.{k}.mlp.up_proj.weight" for k in range(layer)}
    above = tuple(f"{adapter.decoder_path}.layers.{k}." for k in range(layer, adapter.num_layers))
    assert below <= reached
    assert any("vision" in name for name in reached)
    assert not [name for name in reached if name.startswith(above) or ".lm_expert." in name or "gemma_expert" in name]


def test_fault_06_smolvlas_frozen_backbone_is_an_error(build, wrap) -> None:
    policy = wrap(build("smolvla", train_expert_only=True, freeze_vision_encoder=True))
    # What makes it silent: the tapped state requires a gradient all the same, for the state token in it.
    with pytest.raises(GradientError, match="train_expert_only=False"):
        policy(tiny_lerobot_batch(policy, geometry=True))


@pytest.mark.parametrize(
    "options",
    [
        {"train_expert_only": False, "freeze_vision_encoder": True},
        {"train_expert_only": False, "freeze_vision_encoder": False},
    ],
)
def test_fault_06_a_trainable_backbone_of_smolvla_is_fine(options, build, wrap) -> None:
    policy = wrap(build("smolvla", **options))
    policy(tiny_lerobot_batch(policy, geometry=True))
    assert policy.spatial_forcing.status().reaches_policy


@pytest.mark.parametrize("pi", ["pi0", "pi05"])
def test_fault_06_a_frozen_backbone_of_pi0_is_an_error(pi, build, wrap) -> None:
    policy = wrap(build(pi, train_expert_only=True))
    with pytest.raises(GradientError):
        policy(tiny_lerobot_batch(policy, geometry=True))


def test_fault_06_pi0_fast_with_a_frozen_backbone_errs(build, wrap) -> None:
    policy = wrap(build("pi0_fast"))
    policy(tiny_lerobot_batch(policy, geometry=True))
    assert policy.spatial_forcing.status().reaches_policy
    policy = build("pi0_fast")
    policy.model.paligemma_with_expert.paligemma.model.requires_grad_(False)
    policy.model.paligemma_with_expert.paligemma.model.language_model.layers[-1].requires_grad_(True)
    with pytest.raises(GradientError):
        wrap(policy, student_layer=2)(tiny_lerobot_batch(policy, geometry=True))


@pytest.mark.parametrize("pi", ["pi0", "pi05", "pi0_fast"])
def test_fault_04_checkpointing_pi0_changes_no_gradient(pi, build, wrap) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = wrap(build(pi, gradient_checkpointing=checkpointing), student_layer=2)
        torch.manual_seed(5)
        loss, _ = policy(tiny_lerobot_batch(policy, geometry=True))
        (tap,) = policy.spatial_forcing.taps.at.values()
        assert (tap.fired, tap.armed) == (1, False)
        loss.backward()
        assert tap.fired == 1, "recomputed during backward, when it must not capture"
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any(name.startswith("spatial_forcing") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=0, rtol=0, msg=name)
