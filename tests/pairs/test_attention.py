"""Pairs that compare the attention of blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.errors import ConfigError
from sfkit.policies.base import PolicyAdapter
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]


def attention(block: int, teacher: Any, **more: Any) -> dict[str, Any]:
    return {"student_layer": block, "teacher": teacher, "teacher_layer": 2, "objective": "attention", **more}


def test_attention_is_aligned_beside_features_from_one_run_of_the_teacher(wrapped: Make) -> None:
    teacher = PatchTeacher({"grid": 6})
    pairs = [(2, teacher, 3), attention(1, teacher, weight=0.5), attention(2, teacher, weight=0.25)]
    policy = wrapped(pairs=pairs)
    batch = tiny_batch()
    loss, logs = policy(batch)
    loss.backward()
    handle = policy.spatial_forcing
    assert handle.runners[0].num_forwards == 1
    singles = [wrapped(pairs=[pair]) for pair in pairs]
    singles[0].spatial_forcing.pairs.load_state_dict(handle.pairs.state_dict())
    found = [one(batch)[1] for one in singles]
    assert logs["sf_loss"] == pytest.approx(sum(one["sf_loss"] for one in found))
    assert logs["sf_cosine"] == pytest.approx(found[0]["sf_cosine"]), "attention has no cosine, and spoils none"
    assert math.isnan(found[1]["sf_cosine"])
    names = [pair.objective and pair.objective.name for pair in handle.config.pairs]
    assert names == [None, "attention", "attention"]
    assert [pair.student_layer for pair in handle.config.pairs] == [2, 1, 2], "saved by the number of the block"
    assert handle.config.projector.name == "mlp"
    assert "the attention of block 1 -> patch layer 2" in str(handle.status())
    assert [layer.student_layer for layer in handle.health().layers] == [2, "attention:1", "attention:2"]


def test_it_is_saved_and_resumed(wrapped: Make, tiny: Make, tmp_path: Path) -> None:
    policy, plain = wrapped(pairs=[(2, "geometry"), attention(1, PatchTeacher())]), tiny()
    policy.spatial_forcing.save(tmp_path)
    changes = {"pairs": [(2, "geometry"), attention(1, PatchTeacher())], "adapter": TinyAdapter(plain)}
    again = SpatialForcing.from_pretrained(plain, tmp_path, **changes)
    assert again.spatial_forcing.config == policy.spatial_forcing.config
    assert again(tiny_batch(seed=1))[1]["sf_loss"] == policy(tiny_batch(seed=1))[1]["sf_loss"]
    copied = copy.deepcopy(policy)
    assert copied(tiny_batch(seed=1))[1]["sf_loss"] == policy(tiny_batch(seed=1))[1]["sf_loss"]


def test_attention_alone_trains_is_measured_and_is_resumed(wrapped: Make, tiny: Make, tmp_path: Path) -> None:
    pairs = [attention(1, PatchTeacher()), attention(3, PatchTeacher())]
    policy = wrapped(pairs=pairs, health={"every": 1}, weight=5.0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, logs = policy(tiny_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(logs["sf_loss"])
    assert losses[-1] < 0.7 * losses[0]
    health = policy.spatial_forcing.health()
    assert (len(health.layers), health.pairs, health.warnings) == (2, (), ())
    assert health.ratio > 0
    policy.spatial_forcing.save(tmp_path)
    plain = tiny()
    again = SpatialForcing.from_pretrained(plain, tmp_path, pairs=pairs, adapter=TinyAdapter(plain))
    assert again.spatial_forcing.steps == 12


def test_fault_35_attention_of_block_k_is_made_of_what_enters_it(wrapped: Make) -> None:
    policy, batch = wrapped(pairs=[attention(2, PatchTeacher())]), tiny_batch()
    seen: list[Tensor] = []
    block = policy.blocks[1]
    with block.qkv.register_forward_hook(lambda module, args, output: seen.append(output.detach())):
        policy(batch)
    assert len(seen) == 2, "once by the policy, once for its visual tokens alone"
    own, made = seen
    assert_rounded(made.flatten(1, 3), own[:, :-1])


def test_attention_trains_the_queries_and_keys_of_its_block_and_what_lies_before(wrapped: Make, tiny: Make) -> None:
    batch, without = tiny_batch(), tiny()
    without(batch)[0].backward()
    plain = {name: p.grad for name, p in without.named_parameters()}
    policy = wrapped(pairs=[attention(2, PatchTeacher())], weight=1.0)
    policy(batch)[0].backward()
    changed = {
        name for name, p in policy.named_parameters()
        if name in plain and p.grad is not None and not torch.allclose(p.grad, plain[name], atol=1e-9)
    }  # fmt: skip
    assert {
        "embed.weight",
        "blocks.0.mlp.0.weight",
        "blocks.1.qkv.weight",
        "blocks.1.input_layernorm.weight",
    } <= changed
    assert not {name for name in changed if name.startswith(("blocks.1.out", "blocks.1.mlp", "blocks.2", "head"))}
    width = policy.embed.out_channels
    grown = policy.blocks[1].qkv.weight.grad - plain["blocks.1.qkv.weight"]
    assert grown[: 2 * width].abs().max() > 0
    assert grown[2 * width :].abs().max() < 1e-9, "values have no part in it"


def test_attention_leaves_absent_views_and_random_states_alone(wrapped: Make) -> None:
    policy = wrapped(pairs=[attention(1, PatchTeacher())])
    batch = tiny_batch()
    batch["present"] = torch.tensor([[True, False], [False, False]])
    before = torch.get_rng_state()
    loss, logs = policy(batch)
    loss.backward()
    assert torch.isfinite(loss)
    other = {**batch, "images": batch["images"].clone()}
    other["images"][:, 1] = 0.5
    torch.set_rng_state(before)
    assert policy(other)[1]["sf_loss"] == logs["sf_loss"]
    none = {**batch, "present": torch.zeros(2, 2, dtype=torch.bool)}
    loss, logs = policy(none)
    loss.backward()
    assert logs["sf_loss"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pairs": [attention(0, PatchTeacher())]}, r"there is none at 0\.\n.*Blocks are 1 to 3"),
        ({"pairs": [attention("encoder", PatchTeacher())]}, "there is none at 'encoder'"),  # type: ignore[arg-type]
        ({"pairs": [attention(4, PatchTeacher())]}, "Student layer 4 is out of range"),
        ({"pairs": [attention(1, "geometry", teacher_layer=1)]}, "'geometry' gives no queries and keys"),
        ({"pairs": [attention(1, PatchTeacher(), projector="linear")]}, "compares queries and keys as they are"),
        ({"pairs": [attention(1, PatchTeacher(), transforms=["pca"])]}, "compares queries and keys as they are"),
        ({"pairs": [attention(1, PatchTeacher())], "transforms": ["layer-norm"]}, "no pair compares features"),
        ({"pairs": [attention(1, PatchTeacher())] * 2}, "listed twice"),
    ],
)
def test_attention_that_cannot_be_had_is_refused(wrapped: Make, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrapped(**arguments)


def test_an_adapter_without_queries_and_keys_says_so(tiny: Make) -> None:
    class Without(TinyAdapter):
        attention_heads = PolicyAdapter.attention_heads

    policy = tiny()
    with pytest.raises(ConfigError, match="'tiny' does not give the queries and keys of TinyPolicy"):
        SpatialForcing.wrap(policy, pairs=[attention(1, PatchTeacher())], adapter=Without(policy))
