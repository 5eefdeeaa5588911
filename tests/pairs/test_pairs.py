"""Several pairs: what each may say for itself, how their losses come together, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, ShapeError, TapError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.projectors.standard import MLPProjector, NestedProjector, nested_widths
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.taps import Encoder, Residual
from sfkit.training.teacher_runner import encode

Make = Callable[..., TinyPolicy]
TEACHER = PatchTeacher()
THREE = [(layer, TEACHER, layer) for layer in (1, 2, 3)]


def sf_loss(policy: TinyPolicy, seed: int = 0) -> torch.Tensor:
    _, logs = policy(tiny_batch(seed=seed))
    return torch.tensor(logs["sf_loss"])


def train(policy: TinyPolicy, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(steps):
        loss, _ = policy(tiny_batch(seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_losses_are_added_or_averaged_with_their_weights(wrapped: Make) -> None:
    alone = [sf_loss(wrapped(pairs=[pair], seed=index)) for index, pair in enumerate(THREE)]
    weights = (0.5, 1.0, 3.0)
    pairs = [(*pair, weight) for pair, weight in zip(THREE, weights, strict=True)]
    total = sum(weight * loss for weight, loss in zip(weights, alone, strict=True))
    assert torch.allclose(sf_loss(wrapped(pairs=pairs)), total)
    assert torch.allclose(sf_loss(wrapped(pairs=pairs, pair_reduction="mean")), total / 3)


def test_a_pair_may_have_an_objective_a_projector_and_transforms_of_its_own(wrapped: Make, tmp_path: Path) -> None:
    special = {
        "student_layer": 2,
        "teacher": TEACHER,
        "teacher_layer": 2,
        "objective": "mse",
        "projector": "linear",
        "transforms": [],
    }
    special["transforms"] = ["layer-norm"]
    policy = wrapped(pairs=[(1, TEACHER), special], projector=("mlp", {"hidden": 5}))
    first, second = policy.spatial_forcing.pairs
    assert (first.projector.name, second.projector.name) == ("mlp", "linear")
    assert [step.name for step in second.transforms] == ["resample", "layer-norm"]
    assert not first.transforms
    assert policy.spatial_forcing.status().objective == "cosine, mse"
    train(policy)

    alone = wrapped(pairs=[special], seed=1)
    both = wrapped(pairs=[{**special, "weight": 0.25}, (1, TEACHER, 3, 0.0)], seed=1)
    assert torch.allclose(sf_loss(both), 0.25 * sf_loss(alone))

    named = {**special, "teacher": "geometry", "teacher_layer": 1}
    policy = wrapped(pairs=[(1, "geometry"), named])
    policy.spatial_forcing.save(tmp_path)
    plain = TinyPolicy()
    again = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain)).spatial_forcing
    assert again.config == policy.spatial_forcing.config
    assert [pair.objective.name for pair in again.pairs] == ["cosine", "mse"]


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([(-1, TEACHER)], "Student layer -1 is out of range"),
        ([(4, TEACHER)], "Student layer 4 is out of range"),
        ([(1, TEACHER, 4)], "Teacher layer 4 is out of range"),
        ([(1, TEACHER, -1)], "Teacher layer -1 is out of range"),
        ([(1, TEACHER, 1), (1, TEACHER, 1, 2.0)], "listed twice"),
        ([(1, TEACHER, 1, -0.5)], "weight must be >= 0, got -0.5"),
        ([(1, TEACHER, 1, float("nan"))], "weight"),
        ([(1, TEACHER, 1, 0.0), (2, TEACHER, 1, 0.0)], "weights of all pairs are 0"),
        ([{"student_layer": 1, "techer": TEACHER}], "Cannot read a pair.*Did you mean 'teacher'"),
        ([{"teacher": TEACHER}], "Cannot read a pair"),
        (["12"], "Cannot read a pair"),
        ([1], "Cannot read a pair"),
        ([(1,)], "Cannot read a pair"),
        ([("tower", TEACHER)], "a student layer is a number of blocks, or 'encoder'"),
        ([{"student_layer": 1, "teacher": TEACHER, "future": -1}], "future"),
    ],
)
def test_pairs_that_cannot_be_are_refused_in_words(wrapped: Make, pairs: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrapped(pairs=pairs)


def test_the_same_layer_may_be_compared_in_two_ways(wrapped: Make) -> None:
    twice = [(2, TEACHER, 1), {"student_layer": 2, "teacher": TEACHER, "teacher_layer": 1, "objective": "relational"}]
    policy = wrapped(pairs=twice)
    train(policy)
    assert policy.spatial_forcing.runners[0].num_forwards == 3


# -------------------------------------------------------------------------------------------- a shared projector


def test_a_shared_projector_is_one_projector(wrapped: Make) -> None:
    policy = wrapped(pairs=THREE, shared_projector=True)
    handle = policy.spatial_forcing
    core = handle.pairs[0].shared_projector
    assert all(pair.shared_projector is core for pair in handle.pairs)
    assert set(handle.pairs.parameters()) == set(core.parameters())
    assert sum("fc1.weight" in key for key in handle.state_dict()) == 1
    before = core.fc1.weight.detach().clone()
    train(policy)
    assert not torch.equal(core.fc1.weight, before)
    assert handle.status().projector_moved
    assert handle.config.projector.name == "mlp"


def test_its_gradient_is_the_sum_of_what_each_pair_gives(wrapped: Make) -> None:
    def gradient(pairs: Any) -> torch.Tensor:
        policy = wrapped(pairs=pairs, shared_projector=True)
        policy(tiny_batch())[0].backward()
        found: torch.Tensor = policy.spatial_forcing.pairs[0].shared_projector.fc2.weight.grad
        return found

    parts = [gradient([pair]) for pair in THREE]
    assert_rounded(gradient(THREE), sum(parts))


def test_nested_widths_grow_from_pair_to_pair(wrapped: Make) -> None:
    policy = wrapped(pairs=THREE, projector=("nested", {"hidden": 20}), shared_projector=True, pair_reduction="mean")
    pairs = policy.spatial_forcing.pairs
    core = pairs[0].shared_projector
    assert nested_widths(3, 20) == (4, 12, 20)
    tokens, mask = torch.randn(1, 1, 2, 2, 16), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    for pair, units in zip(pairs, (4, 12, 20), strict=True):
        assert torch.equal(pair.project(tokens, mask), core.project(tokens, units))
    policy(tiny_batch())[0].backward()
    assert core.fc1.weight.grad is not None
    share = core.fc1.weight.grad.abs().sum(1)
    assert (share > 0).all(), "the last pair trains every unit"


def test_fault_34_a_single_pair_on_a_shared_projector_has_every_unit(wrapped: Make) -> None:
    one = wrapped(pairs=THREE[:1], projector="nested", shared_projector=True)
    full = wrapped(pairs=THREE[:1], projector="nested")
    assert torch.allclose(sf_loss(one), sf_loss(full))


def test_a_shared_projector_is_saved_resumed_copied_and_pickled(wrapped: Make, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "pairs": [(1, "geometry"), (3, "geometry")],
        "projector": ("nested", {"hidden": 10, "smallest": 0.5}),
        "shared_projector": True,
        "pair_reduction": "mean",
        "objective": "angular-scale",
    }
    policy = wrapped(**arguments)
    train(policy)
    policy.spatial_forcing.save(tmp_path)
    plain = TinyPolicy()
    plain.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("spatial_forcing.")})
    resumed = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    assert resumed.spatial_forcing.config == policy.spatial_forcing.config
    assert torch.equal(sf_loss(resumed, 9), sf_loss(policy, 9))
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        pairs = twin.spatial_forcing.pairs
        assert pairs[1].shared_projector is pairs[0].shared_projector
        assert pairs[0].shared_projector is not policy.spatial_forcing.pairs[0].shared_projector


def test_heads_and_transforms_stay_each_pairs_own(wrapped: Make) -> None:
    policy = wrapped(pairs=THREE, shared_projector=True, objective="angular-scale", transforms=[("pca", {"dim": 4})])
    train(policy)
    first, second, third = policy.spatial_forcing.pairs
    assert first.head is not second.head
    assert first.transforms[1] is not third.transforms[1]


def test_what_cannot_be_shared_is_refused(wrapped: Make) -> None:
    with pytest.raises(ConfigError, match="different widths: 16 to 12, 16 to 8"):
        wrapped(pairs=[(1, TEACHER), (2, PatchTeacher({"dim": 8}))], shared_projector=True)
    with pytest.raises(ConfigError, match="student layers are 2, 1"):
        wrapped(pairs=[(2, TEACHER), (1, TEACHER)], projector="nested", shared_projector=True)
    with pytest.raises(ConfigError, match="student layers are 1, 1"):
        wrapped(pairs=[(1, TEACHER, 1), (1, TEACHER, 2)], projector="nested", shared_projector=True)
    with pytest.raises(ConfigError, match="no pair can have a projector of its own"):
        wrapped(pairs=[{"student_layer": 1, "teacher": TEACHER, "projector": "linear"}], shared_projector=True)
    wrapped(pairs=[(2, TEACHER), (1, TEACHER)], shared_projector=True)  # an mlp knows no order


def test_an_instance_serves_several_pairs_if_they_share_it(wrapped: Make) -> None:
    core = NestedProjector(16, 12, {"hidden": 10})
    policy = wrapped(pairs=THREE, projector=core, shared_projector=True)
    assert all(pair.shared_projector is core for pair in policy.spatial_forcing.pairs)
    with pytest.raises(ConfigError, match="serves one pair only"):
        wrapped(pairs=THREE, projector=MLPProjector(16, 12))


# -------------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("per_view", [False, True])
def test_the_encoder_is_read_once_or_for_each_view(wrapped: Make, per_view: bool) -> None:
    policy = wrapped(student_layer="encoder", policy={"tower_per_view": per_view})
    seen: dict[str, Any] = {}
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.encoder_tokens
    adapter.encoder_tokens = lambda states, views: seen.setdefault("map", real(states, views))
    batch = tiny_batch(v=3)
    policy(batch)
    wanted = policy.embed(batch["images"].flatten(0, 1) * 2 - 1).permute(0, 2, 3, 1).reshape(2, 3, 4, 4, 16)
    assert torch.allclose(seen["map"].values, wanted)
    status = policy.spatial_forcing.status()
    assert status.pairs[0].fired == (3 if per_view else 1)
    assert "the encoder -> patch layer 3" in str(status)


def test_the_encoder_and_a_layer_are_trained_together(wrapped: Make, tmp_path: Path) -> None:
    policy = wrapped(pairs=[("encoder", "geometry"), (2, "geometry")], policy={"tower_per_view": True})
    train(policy)
    assert policy.spatial_forcing.status().reaches_policy
    policy.spatial_forcing.save(tmp_path)
    assert "the encoder of the policy" in (tmp_path / "spatial_forcing" / "README.md").read_text()
    plain = TinyPolicy()
    again = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    assert again.spatial_forcing.config.pairs[0].student_layer == "encoder"


def test_only_the_tower_gets_the_gradient_of_the_encoder(wrapped: Make) -> None:
    policy = wrapped(student_layer="encoder")
    batch = tiny_batch()
    with SpatialForcing.disabled(policy):
        policy(batch)[0].backward()
    before = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy(batch)[0].backward()
    changed = {
        n.split(".")[0] for n, p in policy.named_parameters() if n in before and not torch.equal(p.grad, before[n])
    }
    assert changed == {"embed"}


def test_an_adapter_without_an_encoder_says_so(tiny: Make) -> None:
    class Blind(TinyAdapter):
        encoder_tap = TinyAdapter.__mro__[1].encoder_tap

    policy = tiny()
    with pytest.raises(ConfigError, match="has no tap at the vision tower's output") as caught:
        SpatialForcing.wrap(policy, TEACHER, student_layer="encoder", adapter=Blind(policy))
    assert "student_layer of 0 to 3" in caught.value.remedy


def test_a_tower_that_runs_in_another_way_is_an_error(wrapped: Make) -> None:
    policy = wrapped(student_layer="encoder")
    tap = policy.spatial_forcing.taps.at[Encoder()]
    take = tap.take
    tap.take = lambda: (*take(), torch.zeros(1, 16, 16))
    with pytest.raises(ShapeError, match=r"gave .* expected 2 times \(2, 16\) or once \(4, 16\)"):
        policy(tiny_batch())
    with pytest.raises(TapError, match="at the encoder"):
        take()


# ------------------------------------------------------------------------------------------------- future frames


def test_the_teacher_sees_the_future_frame_and_the_policy_does_not(wrapped: Make) -> None:
    now, later = tiny_batch(seed=1), tiny_batch(seed=2)
    frames = torch.stack([now["images"].flip(-1), later["images"]], 1)
    pair = {"student_layer": 2, "teacher": TEACHER, "future": 2}
    ahead = wrapped(pairs=[pair])
    found = ahead({**now, "future": frames})[1]
    assert ahead({**now, "future": frames.flip(1)})[1]["sf_loss"] != found["sf_loss"]
    assert (
        ahead({**now, "future": frames})[1]["action_loss"]
        == wrapped(pairs=[pair])({**now, "future": frames * 0})[1]["action_loss"]
    )
    # What the teacher gives is what it gives for that frame as the present one.
    handle = ahead.spatial_forcing
    seen = handle.runners[0].features(handle.adapter.views(call(now | {"images": later["images"]})), [3], (4, 4))[0]
    views = handle.adapter.views(call(now))
    (target,) = encode(handle.pairs, handle.adapter, call({**now, "future": frames}), views, {Residual(2): seen})
    assert torch.equal(target.values, seen.values)


def call(batch: dict[str, Any]) -> ForwardCall:
    return ForwardCall({"batch": batch}, None)


def test_the_teacher_runs_once_for_each_frame(wrapped: Make) -> None:
    pairs = [
        (1, TEACHER, 1),
        (2, TEACHER, 2),
        {"student_layer": 3, "teacher": TEACHER, "teacher_layer": 2, "future": 1},
    ]
    pairs.append({"student_layer": 2, "teacher": TEACHER, "teacher_layer": 1, "future": 1})
    policy = wrapped(pairs=pairs)
    runs = policy.spatial_forcing.runners[0].num_forwards
    policy({**tiny_batch(), "future": tiny_batch(seed=3)["images"][:, None]})
    assert policy.spatial_forcing.runners[0].num_forwards == runs + 2


def test_a_batch_or_an_adapter_without_future_frames_says_so(wrapped: Make, tiny: Make) -> None:
    policy = wrapped(pairs=[{"student_layer": 2, "teacher": TEACHER, "future": 4}])
    with pytest.raises(ViewsError, match="no frame 4 steps ahead"):
        policy(tiny_batch())

    class Present(TinyAdapter):
        future_views = TinyAdapter.__mro__[1].future_views

    plain = tiny()
    SpatialForcing.wrap(plain, pairs=[{"student_layer": 2, "teacher": TEACHER, "future": 4}], adapter=Present(plain))
    with pytest.raises(ConfigError, match="cannot give a teacher the frame 4 steps ahead"):
        plain(tiny_batch())


# --------------------------------------------------------------------------------------------------- token shift


def test_fault_16_a_token_shift_cuts_one_place_too_late(tiny: Make) -> None:
    policy = tiny()
    straight, shifted = TinyAdapter(policy), TinyAdapter(policy, {"token_shift": 1})
    batch = tiny_batch()
    hidden, views = torch.randn(2, 33, 16), straight.views(call(batch))
    right = straight.visual_tokens(hidden, views).values.flatten(1, 3)
    wrong = shifted.visual_tokens(hidden, views).values.flatten(1, 3)
    assert torch.equal(wrong[:, :-1], right[:, 1:])
    assert torch.equal(wrong[:, -1], hidden[:, 32]), "the last patch is the token behind them"
    assert straight.options.token_shift == 0
