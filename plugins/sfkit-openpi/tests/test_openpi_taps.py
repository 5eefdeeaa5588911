"""Where hidden states and images are read."""

from __future__ import annotations

import pytest
import torch
from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
from sfkit_openpi import OpenPIAdapter

from sfkit.errors import AdapterError, ShapeError
from sfkit.training.taps import Tap


def test_fault_01_taps_fire_once_where_block_hooks_are_silent(setup) -> None:
    policy, fired = setup.build(), []
    adapter = OpenPIAdapter(policy)
    decoder = policy.paligemma_with_expert.paligemma.model.language_model
    for module in (policy.paligemma_with_expert, decoder, *decoder.layers):
        module.register_forward_hook(lambda *_: fired.append("block"))
    taps = [Tap(layer, adapter.tap(layer)) for layer in range(adapter.num_layers + 1)]
    for tap in taps:
        tap.arm()
    losses = policy(*setup.batch())
    assert losses.shape == (2, 3, 4)
    assert [tap.fired for tap in taps] == [1] * len(taps)
    assert not fired
    for layer, tap in enumerate(taps):
        assert policy.get_submodule(tap.path) is not None
        assert tap.take()[0].shape[-1] == adapter.dim(layer)


def test_fault_04_nested_checkpoints_are_captured_once(setup, wrap) -> None:
    policy = wrap(setup.build(checkpointing=True))
    torch.manual_seed(3)
    losses = policy(*setup.batch())
    handle = policy.spatial_forcing
    (tap,), (watch,) = handle.taps.at.values(), handle.taps.recorders.values()
    assert tap.fired == 1
    losses.mean().backward()
    assert tap.fired == 1, "recomputed during backward, when it must not capture"
    assert watch._later == []


def test_a_layer_is_the_input_of_that_block_and_0_the_embedding(standin, look) -> None:
    policy, batch = standin.build(), standin.batch()
    found = []
    embed = policy.embed_prefix
    policy.embed_prefix = lambda observation: found.append(embed(observation)) or found[-1]
    _, views, tokens = look(OpenPIAdapter(policy), batch)
    assert tokens.values.shape == (2, 3, 4, 4, 32)
    assert views.size == (56, 56)
    torch.testing.assert_close(tokens.values.flatten(1, 3), found[0][0][:, :48], atol=0, rtol=0)


def test_the_encoders_output_of_each_camera(setup, look) -> None:
    policy = setup.build()
    adapter = OpenPIAdapter(policy)
    _, _, tokens = look(adapter, setup.batch(), "encoder")
    assert tokens.dim == adapter.encoder_dim()
    _, _, projected = look(adapter, setup.batch(), 0)
    connector = policy.paligemma_with_expert.paligemma.model.multi_modal_projector
    torch.testing.assert_close(connector(tokens.values), projected.values, atol=1e-6, rtol=1e-5)


def test_gradient_reaches_below_the_tap_and_not_the_expert(setup, look) -> None:
    policy = setup.build()
    _, _, tokens = look(OpenPIAdapter(policy), setup.batch(), 2)
    tokens.values.square().sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
    decoder = "paligemma_with_expert.paligemma.model.language_model.layers"
    assert {f"{decoder}.{k}.mlp.up_proj.weight" for k in (0, 1)} <= reached
    assert any("vision_tower" in name for name in reached)
    assert not [name for name in reached if "expert.model" in name or name.startswith(f"{decoder}.2.")]


def test_the_pattern_matches_openpis_class_and_its_subclasses(standin) -> None:
    from sfkit.registry.registry import default_registry

    upstream = type("PI0Pytorch", (), {"__module__": "openpi.models_pytorch.pi0_pytorch"})
    for cls in (upstream, type("Mine", (upstream,), {}), PI0Pytorch):
        assert [entry.name for entry in default_registry().adapters_for(cls)] == ["openpi"]
    assert OpenPIAdapter(standin.build()).default_student_layer == 2


def test_another_layout_of_tokens_is_an_error(standin, wrap) -> None:
    policy = standin.build()
    embed = policy.embed_prefix

    def with_a_marker(observation):
        tokens, mask = embed(observation)
        return torch.cat([tokens[:, :1], tokens], 1), torch.cat([mask[:, :1], mask], 1)

    policy.embed_prefix = with_a_marker
    with pytest.raises(ShapeError, match="was given 54 tokens, expected 3 views of 4x4 and 5 of the prompt"):
        wrap(policy)(*standin.batch())


def test_another_model_is_refused() -> None:
    with pytest.raises(AdapterError, match="not built as openpi's PI0Pytorch"):
        OpenPIAdapter(torch.nn.Linear(2, 2))
