"""Where hidden states are read, and which of their tokens are visual."""

from __future__ import annotations

import re

import pytest
import torch
from prismatic_loop import perturbed

from sfkit.errors import AdapterError, ConfigError, ShapeError
from sfkit.testing.checks import CorrespondenceError, check_correspondence
from sfkit.training.taps import Tap


def test_fault_35_a_tap_at_layer_k_reads_the_hidden_state_k(loop, script) -> None:
    it = script(loop, images=1)
    policy, seen = it.policy(), {}
    policy.register_forward_hook(lambda module, args, output: seen.update(output))
    adapter = script_adapter(policy)
    taps = [Tap(layer, adapter.tap(layer)) for layer in range(adapter.num_layers + 1)]
    for tap in taps:
        tap.arm()
    call = dict(it.batch())
    policy(
        **{key: call[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels")},
        output_hidden_states=True,
    )
    assert [tap.fired for tap in taps] == [1] * len(taps)
    states = seen["hidden_states"]
    assert len(states) == len(taps)
    *below, last = [tap.take()[0] for tap in taps]
    for layer, hidden in enumerate(below):
        assert torch.equal(hidden, states[layer]), f"student layer {layer}"
    # The last one is the stream before the final norm: upstream's own last entry lies behind it.
    assert not torch.allclose(last, states[-1])
    torch.testing.assert_close(policy.language_model.model.norm(last), states[-1])


def script_adapter(policy, **options):
    from sfkit_openvla.adapter import OpenVLAAdapter

    return OpenVLAAdapter(policy, options)


def test_fault_35_layers(script, wrap) -> None:
    openvla = script("openvla")
    policy = openvla.policy()
    adapter = script_adapter(policy)
    assert (adapter.num_layers, adapter.default_student_layer, adapter.dim(3)) == (4, 3, 32)
    for layer in range(5):
        point = adapter.tap(layer)
        assert policy.get_submodule(point.path) is point.module
    for layer in (-1, 5):
        with pytest.raises(ConfigError, match=r"Student layers are 0 \(embeddings\) to 4"):
            wrap(policy, student_layer=layer)


@pytest.mark.parametrize(
    ("loop", "images", "film"),
    [
        ("openvla", 1, False),
        ("oft-l1", 2, False),
        ("oft-l1", 3, True),
        ("oft-diffusion", 1, True),
        ("oft-discrete", 1, False),
    ],
)
def test_fault_16_20_25_every_patch_moves_its_own_token(loop, images, film, script, wrap, looped) -> None:
    it = script(loop, images=images, film=film)
    policy = wrap(it.policy(), student_layer=0)
    check_correspondence(looped(it, policy), it.batch(), perturbed)


def test_fault_16_the_released_recipes_shift_is_found(script, wrap, looped) -> None:
    oft = script("oft-l1", images=2)
    policy = wrap(oft.policy(), student_layer=0, adapter=("openvla", {"token_shift": 1}))
    with pytest.raises(CorrespondenceError, match=r"row 0, column 1 of view 0 moved the student's row 0, column 0"):
        check_correspondence(looped(oft, policy), oft.batch(), perturbed, cells=[(0, 1)])


@pytest.mark.parametrize("shift", [0, 1])
def test_fault_16_only_the_shift_includes_the_proprio_token(shift, script, wrap, looped) -> None:
    oft = script("oft-l1", images=2)
    policy = wrap(oft.policy(), student_layer=0, adapter=("openvla", {"token_shift": shift}))
    found = []
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens
    adapter.visual_tokens = lambda hidden, views: found.append(real(hidden, views)) or found[-1]
    for seed in (0, 1):
        oft.loss(policy, {**oft.batch(), "proprio": oft.batch(seed=seed)["proprio"]})
    moved = (found[1].values - found[0].values).detach().norm(dim=-1).amax(0)
    assert bool(moved[1, -1, -1] > 1e-3) is bool(shift), "the last token of the last view"
    assert float(moved.flatten()[:-1].max()) < 1e-5


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("proprio", [False, True])
@pytest.mark.parametrize("loop", ["oft-l1", "oft-diffusion"])
def test_tokens_behind_the_views_do_not_disturb_the_count(loop, images, proprio, script, wrap) -> None:
    it = script(loop, images=images, proprio=proprio)
    policy = wrap(it.policy())
    it.loss(policy, it.batch())
    assert policy.spatial_forcing.steps == 1
    assert policy.spatial_forcing.adapter.grid == (4, 4)


def test_another_layout_of_the_sequence_says_what_was_found(script, wrap) -> None:
    oft = script("oft-l1", images=2)
    policy = wrap(oft.policy())
    policy.spatial_forcing.adapter.policy.vision_backbone.set_num_images_in_input(2)
    real = policy.projector.forward
    policy.projector.forward = lambda patches: torch.cat([real(patches), real(patches[:, :1])], 1)
    text = oft.batch()["input_ids"].shape[1]
    says = f"was given (batch, tokens) (2, {text + 34}), expected (2, {text + 33}): the text, and 32 visual tokens"
    with pytest.raises(ShapeError, match=re.escape(says)):
        oft.loss(policy, oft.batch())


def test_another_decoder_is_an_error_at_wrap_time(script, wrap) -> None:
    policy = script("openvla").policy()
    del policy.language_model.model.norm
    with pytest.raises(AdapterError, match=r"no language_model\.model with a norm at its end"):
        wrap(policy)


@pytest.mark.parametrize(("loop", "images", "film"), [("openvla", 1, False), ("oft-l1", 3, True)])
def test_the_encoders_tokens_are_the_vision_backbones_output(loop, images, film, script, wrap) -> None:
    it = script(loop, images=images, film=film)
    policy, given, found = wrap(it.policy(), student_layer="encoder"), [], []
    policy.vision_backbone.register_forward_hook(lambda module, args, output: given.append(output))
    adapter = policy.spatial_forcing.adapter
    real = adapter.encoder_tokens
    adapter.encoder_tokens = lambda states, views: found.append(real(states, views)) or found[-1]
    it.loss(policy, it.batch())
    assert torch.equal(found[0].values, given[0].reshape(2, images, 4, 4, -1))
    assert found[0].dim == adapter.encoder_dim() == policy.spatial_forcing.pairs[0].projector.student_dim
