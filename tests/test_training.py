"""What users do in training loops."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, GradientError, LossError
from sfkit.policies.base import TapPoint
from sfkit.projectors.standard import MLPProjector
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.taps import Residual

Make = Callable[..., TinyPolicy]


def grads(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_accumulated_gradients_are_the_mean(wrapped: Make) -> None:
    policy, other = wrapped(), wrapped()
    whole = tiny_batch(b=4)
    policy(whole)[0].backward()
    for half in (slice(0, 2), slice(2, 4)):
        (other({key: value[half] for key, value in whole.items()})[0] / 2).backward()
    assert_rounded(grads(policy), grads(other))


@pytest.mark.parametrize("checkpointing", ["non-reentrant"])
@pytest.mark.parametrize("layer", [1, 3])
def test_fault_04_activation_checkpointing_changes_no_gradient(wrapped: Make, checkpointing: str, layer: int) -> None:
    policy, other = wrapped(student_layer=layer), wrapped(student_layer=layer, policy={"checkpointing": checkpointing})
    for which in (policy, other):
        torch.manual_seed(0)
        which(tiny_batch())[0].backward()
    assert_rounded(grads(policy), grads(other))
    assert other.spatial_forcing.status().pairs[0].fired == 1, "the recomputation must not count"


@pytest.mark.filterwarnings("ignore:sfkit could not verify the gradient path")
@pytest.mark.parametrize("layer", [1, 3])
def test_fault_03_reentrant_checkpointing_changes_no_gradient(wrapped: Make, layer: int) -> None:
    # What enters a block is outside of what such a checkpoint cuts off.
    policy, other = wrapped(student_layer=layer), wrapped(student_layer=layer, policy={"checkpointing": "reentrant"})
    for which in (policy, other):
        torch.manual_seed(0)
        which(tiny_batch())[0].backward()
    assert_rounded(grads(policy), grads(other))


def test_fault_03_a_tap_in_a_reentrant_checkpoint_is_an_error(tiny: Make) -> None:
    class Inside(TinyAdapter):
        def tap(self, layer: int) -> TapPoint:
            return TapPoint(self.policy.blocks[layer].post_layernorm, "post_layernorm")

    policy = tiny(checkpointing="reentrant")
    SpatialForcing.wrap(policy, PatchTeacher(), student_layer=1, adapter=Inside(policy))
    with pytest.raises(GradientError, match=r"(?s)student layer 1 fired while gradients were off.*use_reentrant=False"):
        policy(tiny_batch())


def test_fault_52_autocast_keeps_the_alignment_in_float32(wrapped: Make) -> None:
    policy = wrapped()
    dtypes: list[torch.dtype] = []
    policy.spatial_forcing.pairs[0].projector.register_forward_hook(lambda m, a, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = policy(tiny_batch())
    loss.backward()
    assert dtypes == [torch.float32]


def test_fault_52_casting_leaves_projector_and_geometry_exact(wrapped: Make) -> None:
    policy = wrapped("geometry").bfloat16()
    assert {p.dtype for p in policy.spatial_forcing.parameters()} == {torch.float32}
    assert policy.embed.weight.dtype == torch.bfloat16
    batch = tiny_batch()
    batch |= {key: batch[key].bfloat16() for key in ("images", "state", "action")}
    seen: list[Any] = []
    teacher = policy.spatial_forcing.runners[0].teacher
    encode = teacher.encode
    teacher.encode = lambda model, views, *rest: seen.append(views) or encode(model, views, *rest)
    loss, info = policy(batch)
    loss.backward()
    assert seen[0].depth.dtype == torch.float32
    assert info["sf_loss"] > 0
    assert policy.half().spatial_forcing.pairs[0].projector.fc1.weight.dtype == torch.float32
    assert policy.to("cpu", torch.float64).spatial_forcing.pairs[0].projector.fc1.weight.dtype == torch.float32


def test_fault_39_no_graph_stays_alive_between_steps(wrapped: Make) -> None:
    policy = wrapped()
    kept: list[weakref.ref[torch.Tensor]] = []
    handle = policy.blocks[2].input_layernorm.register_forward_pre_hook(lambda m, a: kept.append(weakref.ref(a[0])))
    loss, _ = policy(tiny_batch())
    loss.backward()
    del loss
    handle.remove()
    gc.collect()
    assert [ref() for ref in kept] == [None]
    for value in policy.spatial_forcing._last.values():
        assert value.grad_fn is None


def test_an_exception_in_forward_leaves_the_policy_usable(wrapped: Make) -> None:
    policy = wrapped()
    bad = {key: value for key, value in tiny_batch().items() if key != "action"}
    with pytest.raises(KeyError, match="action"):
        policy(bad)
    tap = policy.spatial_forcing.taps.at[Residual(2)]
    assert (tap.armed, tap.hidden) == (False, None)
    assert policy(tiny_batch())[1]["sf_loss"] > 0


def test_batches_of_one_and_missing_cameras(wrapped: Make) -> None:
    policy = wrapped()
    assert policy(tiny_batch(b=1))[1]["sf_loss"] > 0
    batch = tiny_batch(b=1)
    batch["present"] = torch.tensor([[True, False]])
    policy(batch)
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] == 0.5


def test_training_lowers_the_alignment_loss(wrapped: Make) -> None:
    policy = wrapped(weight=1.0)
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss, info = policy(tiny_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(info["sf_loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_several_pairs_share_one_teacher_run(wrapped: Make) -> None:
    calls: list[list[int]] = []

    class Counting(PatchTeacher):
        def encode(self, model: Any, views: Any, layers: Any, grid: Any) -> Any:
            calls.append(list(layers))
            return super().encode(model, views, layers, grid)

    teacher = Counting()
    policy = wrapped(
        pairs=[(1, teacher, 1, 0.25), {"student_layer": 2, "teacher": teacher, "teacher_layer": 3}, (3, "geometry")]
    )
    _, info = policy(tiny_batch())
    assert calls == [[1, 3]]
    status = policy.spatial_forcing.status()
    assert [(p.student_layer, p.teacher, p.teacher_layer, p.weight, p.fired) for p in status.pairs] == [
        (1, "patch", 1, 0.25, 1),
        (2, "patch", 3, 1.0, 1),
        (3, "geometry", 1, 1.0, 1),
    ]
    assert status.teacher_runs == 2
    assert len(policy.spatial_forcing.pairs) == 3
    assert info["sf_loss"] > 0
    assert "tiny@1" in policy.spatial_forcing.describe()


def test_pairs_by_name_share_a_teacher_when_their_options_agree(wrapped: Make) -> None:
    world = ("geometry", {"frame": "world"})
    policy = wrapped(pairs=[(1, "geometry"), (2, "geometry"), (2, world)])
    assert len(policy.spatial_forcing.runners) == 2


def test_pairs_are_checked(wrapped: Make) -> None:
    with pytest.raises(ConfigError, match="pairs is empty"):
        wrapped(pairs=[])
    with pytest.raises(ConfigError, match="Cannot read a pair"):
        wrapped(pairs=[(1, "geometry", 1, 1.0, "more")])
    with pytest.raises(ConfigError, match="names teachers and layers"):
        wrapped("geometry", pairs=[(1, "geometry")])
    with pytest.raises(ConfigError, match="serves one pair only"):
        wrapped(pairs=[(1, "geometry"), (2, "geometry")], projector=MLPProjector(16, 108))


def test_instances_are_accepted_and_their_widths_checked(wrapped: Make) -> None:
    policy = wrapped(projector=MLPProjector(16, 12, {"hidden": 5}), objective="cosine")
    assert policy.spatial_forcing.pairs[0].projector.fc1.out_features == 5
    with pytest.raises(ConfigError, match="maps 16 to 7 channels"):
        wrapped(projector=MLPProjector(16, 7))


def test_options_by_name_reach_the_component(wrapped: Make) -> None:
    policy = wrapped(projector={"name": "mlp", "hidden": 9}, teacher=("geometry", {"cells": 1}))
    assert policy.spatial_forcing.pairs[0].projector.fc1.out_features == 9
    assert policy.spatial_forcing.pairs[0].projector.teacher_dim == 27
    with pytest.raises(ConfigError, match="Did you mean 'hidden'"):
        wrapped(projector={"name": "mlp", "hiden": 9})


def test_status_speaks_in_words_and_as_data(wrapped: Make) -> None:
    policy = wrapped()
    status = policy.spatial_forcing.status()
    assert status.metrics == {}
    assert "not known yet" in str(status)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3)
    for seed in range(2):
        policy(tiny_batch(seed=seed))[0].backward()
        optimizer.step()
    policy(tiny_batch())
    status = policy.spatial_forcing.status()
    assert status.as_dict()["pairs"][0]["tap"] == "blocks.2.input_layernorm"
    text = str(status)
    for part in ("adapter tiny: aligning, 3 steps", "license Apache-2.0", "gradient reaches the policy: yes"):
        assert part in text
    with SpatialForcing.disabled(policy):
        assert "idle (disabled)" in str(policy.spatial_forcing.status())
    assert "idle (the policy is in eval mode)" in str(policy.eval().spatial_forcing.status())


class TrainerStyle(TinyPolicy):
    """Its loss is scaled for accumulation by the caller's count of items, as transformers models do."""

    def forward(self, batch: Any, reduction: str = "mean", num_items_in_batch: int | None = None) -> Any:
        loss, info = super().forward(batch, reduction)
        return loss * len(batch["action"]) / (num_items_in_batch or len(batch["action"])), info


def test_fault_48_num_items_in_batch_with_accumulation() -> None:
    def make(**arguments: Any) -> TrainerStyle:
        torch.manual_seed(0)
        policy = TrainerStyle()
        return SpatialForcing.wrap(policy, PatchTeacher(), student_layer=2, adapter=TinyAdapter(policy), **arguments)

    whole, parts = make(), make(grad_accumulation=4)
    batch = tiny_batch(b=8)
    whole(batch)[0].backward()
    for i in range(0, 8, 2):
        parts({key: value[i : i + 2] for key, value in batch.items()}, num_items_in_batch=8)[0].backward()
    assert_rounded(grads(whole), grads(parts))
    with pytest.raises(LossError, match="num_items_in_batch"):
        make()(batch, num_items_in_batch=8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(wrapped: Make) -> None:
    policy = wrapped("geometry").cuda()
    batch = {key: value.cuda() for key, value in tiny_batch().items()}
    loss, info = policy(batch)
    loss.backward()
    assert info["sf_loss"] > 0
