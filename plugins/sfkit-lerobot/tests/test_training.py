"""Training steps of wrapped tiny policies, and everything that must not change."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit import SfkitWarning, SpatialForcing
from sfkit.errors import SfkitError, ViewsError

FRONT, WRIST = CAMERAS
LOGGED = {"action_loss", "sf_loss", "sf_cosine", "sf_effective_weight"}


def seeded(policy, batch, **arguments):
    torch.manual_seed(3)
    return policy.forward(dict(batch), **arguments)


def test_alignment_is_learned(kind, build, wrap) -> None:
    policy = wrap(build(kind), weight=1.0)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    batch = tiny_lerobot_batch(policy, geometry=True)
    found = []
    for _ in range(25):
        loss, info = seeded(policy, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(info["sf_cosine"])
    assert found[-1] > found[0] + 0.2
    status = policy.spatial_forcing.status()
    assert (status.steps, status.reaches_policy, status.projector_moved) == (25, True, True)


def test_logs_are_added_to_what_the_policy_logs(kind, build, wrap) -> None:
    plain = build(kind)
    batch = tiny_lerobot_batch(plain, geometry=True)
    _, before = seeded(plain, batch)
    _, info = seeded(wrap(build(kind)), batch)
    assert set(info) == set(before) | LOGGED
    assert {key: info[key] for key in before} == before
    assert all(type(info[key]) is float for key in LOGGED)
    assert info["action_loss"] == pytest.approx(before["loss"])


def test_logs_cost_one_wait_for_the_device(kind, build, adapter_of, monkeypatch) -> None:
    adapter, waits = adapter_of(build(kind)), []
    for name in ("tolist", "item", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, original=original: waits.append(1) or original(self))
    logs = {key: torch.tensor(float(i)) for i, key in enumerate(sorted(LOGGED))}
    loss, info = adapter.with_loss((torch.tensor(1.0), {"loss": 1.0}), torch.tensor(2.0), logs)
    assert waits == [1]
    assert info == {"loss": 1.0, "action_loss": 0.0, "sf_cosine": 1.0, "sf_effective_weight": 2.0, "sf_loss": 3.0}
    assert loss == 2.0
    assert adapter.with_loss((torch.tensor(1.0), None), torch.tensor(2.0), logs)[1].keys() == LOGGED
    assert adapter.with_loss((torch.tensor(1.0), None), torch.tensor(2.0), {}) == (torch.tensor(2.0), None)


# pi0-FAST returns one loss for the batch, and knows no other.
@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_reduction_none_gives_a_loss_for_each_sample(kind, build, wrap) -> None:
    plain = build(kind)
    batch = tiny_lerobot_batch(plain, batch_size=3, geometry=True)
    batch[f"{FRONT}_depth"][1] = batch[f"{WRIST}_depth"][1] = 0.0
    policy = wrap(build(kind), self_check=False)
    actions, _ = seeded(plain, batch, reduction="none")
    losses, info = seeded(policy, batch, reduction="none")
    assert losses.shape == (3,)
    added = (losses - actions).detach()
    assert added[1] == 0.0, "a sample without any valid token"
    assert bool((added[[0, 2]] > 0.05).all())
    assert info["sf_loss"] == pytest.approx(float(added.mean()) / 0.5, rel=1e-4)
    mean, _ = seeded(policy, batch)
    assert float(mean.detach()) == pytest.approx(float(losses.detach().mean()), rel=1e-4)


def test_a_batch_of_one_with_one_camera(kind, build, wrap) -> None:
    policy = wrap(build(kind, cameras=[FRONT]))
    loss, _ = policy(tiny_lerobot_batch(policy, batch_size=1, geometry=True))
    loss.backward()
    assert torch.isfinite(loss)


def test_a_camera_that_is_missing_from_the_whole_batch(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    loss, info = policy(tiny_lerobot_batch(policy, missing=[FRONT], geometry=True))
    loss.backward()
    assert torch.isfinite(loss)
    assert info["sf_loss"] > 0
    # pi0 and pi0.5 keep a view for it, SmolVLA does not.
    valid = policy.spatial_forcing.metrics()["sf_valid_token_fraction"]
    assert valid == pytest.approx(1.0 if kind == "smolvla" else 0.5)


def test_a_batch_without_valid_tokens_trains_actions_alone(kind, build, wrap) -> None:
    plain = build(kind)
    batch = tiny_lerobot_batch(plain, geometry=True)
    if kind == "smolvla":
        batch |= {f"{key}_padding_mask": torch.zeros(2, dtype=torch.bool) for key in CAMERAS}
    else:
        batch |= {f"{key}_depth": torch.zeros(2, 1, 56, 56) for key in CAMERAS}
    expected, _ = seeded(plain, batch)
    policy = wrap(build(kind))
    with pytest.warns(SfkitWarning, match="No visual token"):
        loss, info = seeded(policy, batch)
    assert torch.equal(loss, expected)
    assert info["sf_loss"] == 0.0
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


def test_only_a_sample_without_depth_is_masked(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    batch = tiny_lerobot_batch(policy, geometry=True)
    for key in CAMERAS:
        batch[f"{key}_depth"][0] = torch.nan
    loss, _ = policy(batch)
    loss.backward()
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] == pytest.approx(0.5)
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


def test_images_with_nan_are_an_error_and_the_next_step_works(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    good = tiny_lerobot_batch(policy, geometry=True)
    bad = {**good, WRIST: good[WRIST].clone()}
    bad[WRIST][0, 1, 5, 5] = torch.nan
    with pytest.raises(ViewsError, match="NaN"):
        policy(bad)
    loss, _ = policy(good)
    assert torch.isfinite(loss)
    assert policy.spatial_forcing.steps == 1


def test_an_exception_inside_forward_leaves_nothing_behind(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.raises((KeyError, ValueError)):
        policy({key: value for key, value in batch.items() if not key.startswith("action")})
    (tap,) = policy.spatial_forcing.taps.at.values()
    assert (tap.armed, tap.hidden) == (False, None)
    loss, info = policy(batch)
    assert float(loss.detach()) == pytest.approx(info["action_loss"] + 0.5 * info["sf_loss"], rel=1e-5)


def test_fault_30_outside_training_nothing_changes_by_a_bit(kind, build, wrap) -> None:
    plain, policy = build(kind), wrap(build(kind))
    batch = tiny_lerobot_batch(plain, geometry=True)
    with SpatialForcing.disabled(policy):
        assert torch.equal(seeded(policy, batch)[0], seeded(plain, batch)[0])
    with torch.no_grad():
        assert torch.equal(seeded(policy, batch)[0], seeded(plain, batch)[0])
        for each in (plain, policy):
            each.eval()
        assert seeded(policy, batch)[1] == seeded(plain, batch)[1]
    actions = []
    for each in (plain, policy):
        each.reset()
        torch.manual_seed(4)
        actions.append(torch.stack([each.select_action(dict(batch)) for _ in range(10)]))
    assert torch.equal(*actions)
    assert policy.spatial_forcing.status().teacher_runs == 0


def test_unwrapped_is_the_same_object_and_behaves_as_before(kind, build, wrap) -> None:
    plain, policy = build(kind), build(kind)
    cls = type(policy)
    assert wrap(policy) is policy
    assert isinstance(policy, cls)
    batch = tiny_lerobot_batch(policy, geometry=True)
    policy(batch)
    SpatialForcing.unwrap(policy)
    assert type(policy) is cls
    assert sum(len(module._forward_pre_hooks) for module in policy.modules()) == 0
    assert torch.equal(seeded(policy, batch)[0], seeded(plain, batch)[0])


def test_a_deep_copy_aligns_by_itself(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    batch = tiny_lerobot_batch(policy, geometry=True)
    policy(batch)
    twin = copy.deepcopy(policy)
    assert twin.spatial_forcing.adapter.policy is twin
    assert torch.equal(seeded(twin, batch)[0], seeded(policy, batch)[0])


def test_fault_50_training_in_eval_mode_warns_once(kind, build, wrap) -> None:
    policy = wrap(build(kind).eval())
    batch = tiny_lerobot_batch(policy, geometry=True)
    with pytest.warns(SfkitWarning, match=r"policy.train\(\)"):
        policy(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SfkitWarning)
        policy(batch)


def test_fault_52_smolvla_in_bfloat16_keeps_alignment_in_float32(build, wrap) -> None:
    policy = wrap(build("smolvla"))
    policy.bfloat16()
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        loss, info = policy(tiny_lerobot_batch(policy, geometry=True))
    _check_precision(policy, loss, info)


@pytest.mark.parametrize("pi", ["pi0", "pi05"])
def test_fault_52_bfloat16_pi0_keeps_alignment_in_float32(pi, build, wrap) -> None:
    policy = wrap(build(pi, dtype="bfloat16"))
    loss, info = policy(tiny_lerobot_batch(policy, geometry=True))
    _check_precision(policy, loss, info)


def _check_precision(policy, loss, info) -> None:
    handle = policy.spatial_forcing
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    assert abs(info["sf_cosine"]) < 1
    loss.backward()
    gradients = [p.grad for p in handle.parameters()]
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)


def test_fault_52_geometry_stays_in_float32_if_images_do_not(build, adapter_of, views_of) -> None:
    policy = build("smolvla")
    batch = tiny_lerobot_batch(policy, geometry=True)
    batch |= {key: batch[key].bfloat16() for key in CAMERAS}
    views = views_of(adapter_of(policy), batch)
    fields = (views.images, views.depth, views.intrinsics, views.world_from_camera, views.source_to_view)
    assert {field.dtype for field in fields} == {torch.float32}


def test_fault_51_wrap_and_teacher_leave_the_global_random_state(kind, build, wrap) -> None:
    plain, policy = build(kind), build(kind)
    torch.manual_seed(7)
    wrap(policy)
    batch = tiny_lerobot_batch(policy, geometry=True)
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(7).get_state())
    _, info = seeded(policy, batch)
    after = torch.get_rng_state()
    _, expected = seeded(plain, batch)
    assert info["action_loss"] == pytest.approx(expected["loss"])
    assert torch.equal(after, torch.get_rng_state())


def test_errors_are_of_one_family(kind, build, wrap) -> None:
    policy = wrap(build(kind))
    with pytest.raises(SfkitError):
        policy(tiny_lerobot_batch(policy))
