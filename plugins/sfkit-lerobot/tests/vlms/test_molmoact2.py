"""What is MolmoAct2's own: images consumed by the preprocessor, half-empty tokens, crops, three kinds of actions."""

from __future__ import annotations

import json

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_molmoact2

from sfkit.errors import AdapterError, ViewsError

pytestmark = pytest.mark.filterwarnings("ignore:`rope_config_validation` is deprecated:FutureWarning")

FRONT, WRIST = CAMERAS


@pytest.fixture
def checkpoint(molmoact2_base, tmp_path):
    """``checkpoint(**settings)``: the tiny checkpoint, whose image processor has other settings."""

    def checkpoint(**settings):
        for path in molmoact2_base.iterdir():
            (tmp_path / path.name).symlink_to(path)
        (tmp_path / "processor_config.json").unlink()
        stored = json.loads((molmoact2_base / "processor_config.json").read_text())["image_processor"]
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**stored, **settings}}))
        return tmp_path

    return checkpoint


def test_the_tapped_state_is_the_same_for_every_kind_of_action(build, batch_of, adapter_of, tapped) -> None:
    # The last one runs the decoder's own forward, the others its blocks one by one.
    policies = [build("molmoact2", action_mode=mode) for mode in ("both", "continuous", "discrete")]
    batch = batch_of(policies[0])
    for layer in (0, 2, 4):
        first, *others = (tapped(adapter_of(policy), batch, layer)[0] for policy in policies)
        for state in others:
            torch.testing.assert_close(state, first, atol=1e-5, rtol=1e-4)


def test_a_norm_behind_the_attention_does_not_move_the_tap(build, batch_of, adapter_of, tapped) -> None:
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2PostNormDecoderLayer

    policy = build("molmoact2", action_mode="discrete")
    adapter, batch, states = adapter_of(policy), batch_of(policy), {}
    for block in adapter.decoder.blocks:
        block.__class__ = MolmoAct2PostNormDecoderLayer
    adapter.decoder.register_forward_hook(lambda _, __, output: states.update(enumerate(output.hidden_states)))
    forward = adapter.decoder.forward
    adapter.decoder.forward = lambda **given: forward(**{**given, "output_hidden_states": True})
    hidden, _, _ = tapped(adapter, batch, 2)
    assert torch.equal(hidden, states[2])


def test_fault_24_tokens_that_are_half_empty_are_masked(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("molmoact2", image_shape=(3, 56, 56))
    raw = frames(policy)
    batch = finish(policy, raw)
    assert sorted(set((batch["image_token_pooling"] >= 0).sum(1).tolist())) == [1, 2, 4]
    _, views, student = tapped(adapter_of(policy), batch, 0)
    assert views.size == (64, 64)
    assert not bool(views.images[..., 56:, :].any() or views.images[..., 56:].any())
    assert student.mask.all(0).int().tolist() == [[[1, 1, 1, 0]] * 3 + [[0] * 4]] * 2
    torch.testing.assert_close(views.images[:, 0, :, :56, :56], raw[FRONT], atol=0.005, rtol=0)
    torch.testing.assert_close(views.depth[:, 0, :56, :56], raw[f"{FRONT}_depth"][:, 0])
    assert bool((views.depth[:, :, 56:] == 0).all())


def test_fault_20_of_a_picture_in_crops_the_whole_is_aligned(
    checkpoint, build, frames, finish, adapter_of, tapped
) -> None:
    base = checkpoint(crop_mode="overlap-and-resize-c2", max_crops=3, overlap_margins=[1, 1])
    build("molmoact2")
    policy = tiny_molmoact2(base, image_shape=(3, 56, 96))
    adapter, raw = adapter_of(policy), frames(policy)
    batch = finish(policy, raw)
    assert batch["image_num_crops"].tolist() == [3] * 4
    assert batch["image_grids"].tolist() == [[4, 4, 4, 6]] * 4
    _, _, before = tapped(adapter, batch, 0)
    changed = {**raw, WRIST: raw[WRIST].clone()}
    changed[WRIST][:, :, 17:31, 57:81] = 1 - changed[WRIST][:, :, 17:31, 57:81].round()
    moved = (tapped(adapter, finish(policy, changed), 0)[2].values - before.values).norm(dim=-1)
    assert moved.flatten(1).argmax(1).tolist() == [16 + 4 + 2] * 2
    assert not bool(moved[:, 0].any())


def test_fault_25_views_in_another_order_are_an_error(build, frames, finish, adapter_of, tapped) -> None:
    policy = build("molmoact2", image_keys=[WRIST, FRONT])
    raw = frames(policy)
    batch = finish(policy, raw)
    _, views, _ = tapped(adapter_of(policy), batch, 0)
    assert views.names == (WRIST, FRONT)
    torch.testing.assert_close(views.depth[:, 0, 4, 4], raw[f"{WRIST}_depth"][:, 0, 5, 5])
    policy.config.image_keys = []  # as when the preprocessor is that of another checkpoint
    with pytest.raises(ViewsError, match=f"look like those of {WRIST}, {FRONT}"):
        adapter_of(policy).prompt(batch)
    assert tuple(adapter_of(policy, views=(WRIST, FRONT)).prompt(batch).boxes) == (WRIST, FRONT)
    with pytest.raises(AdapterError, match=r"no camera observation\.images\.side"):
        adapter_of(policy, views=("observation.images.side",))


def test_cameras_that_see_the_same_are_no_error(build, frames, finish, adapter_of) -> None:
    policy = build("molmoact2")
    raw = frames(policy)
    raw[WRIST] = raw[FRONT]
    adapter_of(policy).prompt(finish(policy, raw))


def test_fault_25_a_missing_camera_names_the_option(build, frames, finish, adapter_of) -> None:
    policy = build("molmoact2")
    batch = finish(policy, frames(policy, missing=(FRONT,)))
    with pytest.raises(ViewsError, match="2 samples show 2 images"):
        adapter_of(policy).prompt(batch)
    assert tuple(adapter_of(policy, views=(WRIST,)).prompt(batch).boxes) == (WRIST,)


def test_fault_26_images_molmoact2_would_clip_are_an_error(build, frames, finish, adapter_of) -> None:
    from lerobot.configs.types import NormalizationMode

    policy = build("molmoact2")
    raw = frames(policy)
    raw[FRONT] = raw[FRONT] * 2 - 1
    with pytest.raises(ViewsError, match="MolmoAct2 would change it"):
        adapter_of(policy).prompt(finish(policy, raw))
    policy.config.normalization_mapping = {"VISUAL": NormalizationMode.MEAN_STD}
    with pytest.raises(ViewsError, match="as if they were in"):
        adapter_of(policy).prompt(finish(policy, frames(policy)))


def test_without_a_preprocessor_it_says_so(build, frames, adapter_of) -> None:
    policy = build("molmoact2")
    with pytest.raises(ViewsError, match="did not go through MolmoAct2's preprocessor"):
        adapter_of(policy).prompt(frames(policy))


def test_tokens_that_are_no_whole_rows_of_patches_are_an_error(build, batch_of, adapter_of) -> None:
    policy = build("molmoact2")
    batch = batch_of(policy)
    batch["image_grids"] = batch["image_grids"] * 5
    with pytest.raises(ViewsError, match="20x20 tokens of 7x7 patches, 4 to a token"):
        adapter_of(policy).prompt(batch)


def test_fault_03_and_04_checkpointing_molmoact2_keeps_gradients(build, batch_of, wrap) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = wrap(build("molmoact2", gradient_checkpointing=checkpointing), student_layer=2)
        batch = batch_of(policy)
        torch.manual_seed(5)
        policy.forward(batch)[0].backward()
        (tap,) = policy.spatial_forcing.taps.at.values()
        assert (tap.fired, tap.armed) == (1, False)
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any("image_vit" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_fault_07_its_own_lora_is_reached(build, batch_of, wrap) -> None:
    policy = wrap(build("molmoact2", enable_lora_vlm=True, lora_rank=2), student_layer=2)
    (tap,) = policy.spatial_forcing.taps.at.values()
    assert policy.get_submodule(tap.path) is policy._backbone().transformer.blocks[2]
    loss, _ = policy.forward(batch_of(policy), reduction="none")
    assert loss.shape == (2,)
    loss.mean().backward()
    assert policy.spatial_forcing.status().reaches_policy
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
    assert any("blocks.1" in name and "lora_B" in name for name in reached)
