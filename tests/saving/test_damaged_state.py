"""State that is damaged, incomplete or foreign is refused by name, and the handle stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.errors import CheckpointError
from sfkit.saving import checkpoint
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch

Damage = Callable[[dict[str, Tensor]], object]
WEIGHT = "pairs.0.projector.fc1.weight"


def make(seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    policy = TinyPolicy()
    settings = {"weight": "balance:0.1", "schedule": "conflict", "health": {"every": 1}, "student_layer": 2}
    return SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy), **{**settings, **arguments})


def train(policy: Any, steps: int) -> None:
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for seed in range(steps):
        loss, _ = policy(tiny_batch(seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = make()
    train(policy, 3)
    policy.spatial_forcing.save(folder := tmp_path_factory.mktemp("saved"))
    return folder / checkpoint.FOLDER


def everything(handle: Any) -> dict[str, Tensor]:
    found = {**handle.state_dict(), **handle.monitor.state()}
    return {key: value.clone() for key, value in found.items()}


def set_to(key: str, value: Any) -> Damage:
    return lambda entries: entries.__setitem__(key, torch.as_tensor(value))


def spoil(key: str, number: float) -> Damage:
    return lambda entries: entries[key].view(-1)[:1].fill_(number)


def cast(key: str, dtype: torch.dtype) -> Damage:
    return lambda entries: entries.__setitem__(key, entries[key].to(dtype))


SUM = "statistics.0.total.all"
DAMAGES: dict[str, tuple[str, Damage]] = {
    "no step": ("step", lambda entries: entries.pop("step")),
    **{f"step {value}": ("step", set_to("step", value)) for value in (-5, 2**53, 2**62)},
    **{f"step {value}": ("step", set_to("step", value)) for value in (2.7, 3.0, float("inf"), float("nan"))},
    "several steps": ("step", set_to("step", [1, 2])),
    **{f"{key} {value}": (key, spoil(key, value)) for key in (WEIGHT, SUM) for value in (float("nan"), float("inf"))},
    "infinite balance": ("balance.log", set_to("balance.log", float("inf"))),
    "infinite schedule": ("schedule", set_to("schedule.0.conflict.mean", torch.tensor(float("inf")).double())),
    "half a measurement": ("schedule", set_to("schedule.0.conflict.count", torch.tensor(0.5).double())),
    **{f"{key} {d}": (key, cast(key, d)) for key in (WEIGHT, SUM) for d in (torch.int64, torch.bfloat16, torch.bool)},
    "balance in float64": ("balance.log", cast("balance.log", torch.float64)),
    "schedule in int64": ("schedule.0.conflict.mean", cast("schedule.0.conflict.mean", torch.int64)),
    "steps_left in float32": ("steps_left", cast("statistics.0.steps_left", torch.float32)),
    **{
        f"unknown {key}": (key, set_to(key, [1.0]))
        for key in (
            *("statistics.9.count.all", "statistics.00.count.all", "statistics", "teachers.9.count", "health.rank"),
            *("health.tokens.9", "schedule.1.conflict.mean", "balance.logs", "measured.0", "steps", "pairs.0.extra"),
        )
    },
    "unknown statistic": ("median.all", set_to("statistics.0.median.all", [1.0])),
    **{
        f"{key} misshapen": (key, set_to(key, torch.ones(3, 5)))
        for key in (WEIGHT, SUM, "measured", "balance.log", "health.tokens.2", "health.projector")
    },
    "health.projector too long": ("health.projector", set_to("health.projector", torch.ones(10**6))),
    "negative count": ("count.all", spoil("statistics.0.count.all", -1.0)),
    "half of the sums": ("statistics.0", lambda entries: entries.pop("statistics.0.square.all")),
    "no statistics": ("statistics.0", lambda entries: [entries.pop(key) for key in [*entries] if "statistics" in key]),
    "no schedule": ("schedule.0.conflict.mean", lambda entries: entries.pop("schedule.0.conflict.mean")),
    "no balance": ("balance.log", lambda entries: entries.pop("balance.log")),
    "no measurement": ("measured", lambda entries: entries.pop("measured")),
    "no weight": (WEIGHT, lambda entries: entries.pop(WEIGHT)),
    "nothing": ("step", lambda entries: entries.clear()),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_fault_67_damaged_state_is_refused_by_its_key(saved: Path, tmp_path: Path, case: str) -> None:
    key, damage = DAMAGES[case]
    entries = {name: value.clone() for name, value in load_file(saved / "projector.safetensors").items()}
    damage(entries)
    save_file(entries, tmp_path / "projector.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    handle = make(seed=7).spatial_forcing
    handle.steps = 11
    before = everything(handle)
    with pytest.raises(CheckpointError, match=key.removeprefix("statistics.0.").replace(".", r"\.")):
        checkpoint.load_into(handle, tmp_path)
    after = everything(handle)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) or value.isnan().all() for name, value in before.items())


def test_sound_state_loads_to_the_last_bit(saved: Path) -> None:
    handle = make(seed=7).spatial_forcing
    checkpoint.load_into(handle, saved)
    entries = load_file(saved / "projector.safetensors")
    assert entries.keys() == {*handle.state_dict(), *(f"health.{key}" for key in handle.monitor.state())}
    assert all(torch.equal(value, entries[key]) for key, value in handle.state_dict().items())


@pytest.mark.parametrize("changes", [{"weight": 0.2}, {"schedule": "constant"}, {"schedule": "stop:9", "weight": 1.0}])
def test_another_weight_or_schedule_leaves_its_state_out(saved: Path, changes: dict[str, Any]) -> None:
    policy = TinyPolicy()
    SpatialForcing.from_pretrained(policy, saved, adapter=TinyAdapter(policy), **changes)
    assert policy.spatial_forcing.steps == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["step", "schedule.0.conflict.mean", "balance.log", "measured"])
def test_fault_67_a_policys_state_without_ours_is_refused(key: str) -> None:
    state = make().state_dict()
    del state[f"spatial_forcing.{key}"]
    with pytest.raises(CheckpointError, match=key):
        make().load_state_dict(state)


@pytest.mark.parametrize("key", ["teachers.9.count", "schedule.0.stop.x", "statistics.3.count.all", "health.projector"])
def test_fault_67_a_policys_state_with_foreign_keys_is_refused(key: str) -> None:
    state = {**make().state_dict(), f"spatial_forcing.{key}": torch.ones(1)}
    with pytest.raises(CheckpointError, match=key):
        make().load_state_dict(state)
