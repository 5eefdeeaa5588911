"""Objectives, projectors and transforms in a wrapped policy: trained, saved, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.cli.listing import plugins_json
from sfkit.errors import ConfigError
from sfkit.objectives.distances import CosineObjective
from sfkit.registry import builtin
from sfkit.registry.registry import Registry
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.transforms.standard import PositionCode

TERMS = [("cosine", 1.0), ("angular-scale", 0.5), ("info-nce", 0.1)]


def steps(policy: TinyPolicy, count: int = 3, **batch: Any) -> list[float]:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for step in range(count):
        loss, logs = policy(tiny_batch(seed=step, **batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(logs["sf_loss"]))
    return losses


@pytest.mark.parametrize(
    "objective", ["angular-scale", "info-nce", "mse", "relational", "smooth-l1", ("sum", {"terms": TERMS})]
)
def test_every_objective_trains(wrapped: Callable[..., TinyPolicy], objective: Any) -> None:
    policy = wrapped(objective=objective)
    before = {name: p.detach().clone() for name, p in policy.spatial_forcing.named_parameters()}
    assert all(loss > 0 for loss in steps(policy))
    assert policy.spatial_forcing.status().reaches_policy
    still = {"bias"} if objective == "relational" else set()  # a last bias is no relation, but almost none
    for name, parameter in policy.spatial_forcing.named_parameters():
        assert name.rpartition(".")[2] in still or not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("projector", ["conv", "linear", ("mlp-silu", {"hidden": 8}), "nested"])
def test_every_projector_trains(wrapped: Callable[..., TinyPolicy], projector: Any) -> None:
    policy = wrapped(projector=projector)
    steps(policy)
    assert policy.spatial_forcing.status().projector_moved


def test_identity_aligns_the_policy_itself(wrapped: Callable[..., TinyPolicy]) -> None:
    width = TinyAdapter(TinyPolicy()).dim(2)
    policy = wrapped(PatchTeacher({"dim": width}), projector="identity")
    steps(policy)
    assert policy.spatial_forcing.status().projector_parameters == 0
    assert policy.spatial_forcing.status().reaches_policy


def test_transforms_set_the_width_of_the_target(wrapped: Callable[..., TinyPolicy]) -> None:
    width = TinyAdapter(TinyPolicy()).dim(2)
    policy = wrapped(
        PatchTeacher({"dim": width + 5}), projector="identity", transforms=[("random-projection", {"dim": width})]
    )
    steps(policy)
    assert policy.spatial_forcing.pairs[0].projector.teacher_dim == width


def test_all_of_it_is_saved_and_resumed(wrapped: Callable[..., TinyPolicy], tmp_path: Path, tiny: Any) -> None:
    transforms = [("position-code", {"ratio": 0.2}), "resample", "spatial-norm", ("pca", {"dim": 3})]
    arguments = {"projector": "conv", "objective": ("sum", {"terms": TERMS}), "transforms": transforms}
    policy = wrapped("geometry", **arguments)
    steps(policy)
    policy.spatial_forcing.save(tmp_path)
    config = json.loads((tmp_path / "spatial_forcing" / "config.json").read_text())["config"]
    assert [item["name"] for item in config["transforms"]] == ["position-code", "resample", "spatial-norm", "pca"]
    assert config["transforms"][0]["options"]["ratio"] == 0.2

    plain = tiny()
    resumed = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    one, two = policy.spatial_forcing.state_dict(), resumed.spatial_forcing.state_dict()
    assert any(".head." in key for key in one)
    assert one["pairs.0.transforms.3.fitted"]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert resumed.spatial_forcing.config == policy.spatial_forcing.config


def test_heads_and_transforms_leave_initial_projectors_as_is(wrapped: Callable[..., TinyPolicy]) -> None:
    before = torch.get_rng_state()
    plain, more = wrapped(), wrapped(objective="angular-scale", transforms=["layer-norm"])
    assert torch.equal(torch.get_rng_state(), before)
    one, two = (dict(policy.spatial_forcing.pairs[0].named_parameters()) for policy in (plain, more))
    assert two.keys() - one.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(one[key], two[key]) for key in one)
    head = two["head.weight"]
    assert not torch.equal(head, one["projector.fc2.weight"])


def test_each_pair_has_its_own_transforms(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(
        pairs=[(1, PatchTeacher({"dim": 8}), 1), (2, PatchTeacher({"dim": 12}), 2)], transforms=["position-code"]
    )
    steps(policy)
    assert [pair.transforms[1].dim for pair in policy.spatial_forcing.pairs] == [8, 12]
    with pytest.raises(ConfigError, match="transform instance serves one pair"):
        wrapped(pairs=[(1, "geometry"), (2, "geometry")], transforms=[PositionCode(108)])


def test_instances_are_taken_as_they_are(wrapped: Callable[..., TinyPolicy]) -> None:
    code = PositionCode(12, {"ratio": 0.5})
    policy = wrapped(PatchTeacher(), objective=CosineObjective(), transforms=[code])
    assert policy.spatial_forcing.pairs[0].transforms[1] is code
    assert policy.spatial_forcing.config.transforms[1].options["ratio"] == 0.5
    for unreadable in ("layer-norm", {"name": "layer-norm"}):
        with pytest.raises(ConfigError, match="not a list"):
            wrapped(PatchTeacher(), transforms=unreadable)


def test_built_in_components_have_their_registered_names() -> None:
    registry = Registry()
    registry.add_plugin(builtin, "sfkit")
    found = {kind: [entry.name for entry in registry.of_kind(kind)] for kind in ("objective", "projector", "transform")}
    assert found == {
        "objective": ["angular-scale", "attention", "cosine", "info-nce", "mse", "relational", "smooth-l1", "sum"],
        "projector": ["conv", "identity", "linear", "mlp", "mlp-silu", "nested"],
        "transform": ["layer-norm", "pca", "position-code", "random-projection", "resample", "spatial-norm"],
    }
    listed = {(entry["kind"], entry["name"]) for entry in json.loads(plugins_json(registry))["entries"]}
    for kind, names in found.items():
        for name in names:
            assert registry.get(kind, name).load().name == name  # type: ignore[arg-type]
            assert (kind, name) in listed


def test_the_status_names_objective_and_weight(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped(objective="mse", weight=0.125, schedule="linear:4")
    assert "  objective mse, weight 0.125, projector of " in str(policy.spatial_forcing.status())
    policy(tiny_batch())[0].backward()
    status = policy.spatial_forcing.status()
    assert "weight 0.09375 at the coming step" in str(status)
    assert (status.objective, status.weight) == ("mse", 0.125)
