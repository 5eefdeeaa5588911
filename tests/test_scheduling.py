"""Schedules in training: what runs, what is freed, what survives."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import ConfigError
from sfkit.schedules.standard import EverySchedule
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]


def weights(policy: TinyPolicy, steps: int) -> list[float]:
    return [policy(tiny_batch(seed=step))[1]["sf_effective_weight"] for step in range(steps)]


def test_the_weight_follows_the_schedule(wrapped: Make) -> None:
    policy = wrapped(weight=0.4, schedule=["every:2", "stop:5"])
    assert weights(policy, 7) == pytest.approx([0.4, 0, 0.4, 0, 0.4, 0, 0])
    assert policy.spatial_forcing.runners[0].num_forwards == 3
    assert policy.spatial_forcing.steps == 7


def test_a_resting_step_is_that_of_the_plain_policy(tiny: Make, wrapped: Make) -> None:
    policy, plain = wrapped(schedule="every:2"), tiny()
    policy(tiny_batch())
    for one in (policy, plain):
        torch.manual_seed(0)
        one(tiny_batch(seed=1))[0].backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, policy.get_parameter(name).grad)
    assert all(parameter.grad is None for parameter in policy.spatial_forcing.parameters())


def test_a_hard_stop_frees_the_teacher_and_keeps_the_projector(wrapped: Make, caplog: Any) -> None:
    policy = wrapped(schedule="stop:2")
    handle, host = policy.spatial_forcing, policy.spatial_forcing.runners[0]
    weights(policy, 2)
    network = weakref.ref(host._model)
    assert network() is not None
    with caplog.at_level(logging.INFO, "sfkit"):
        assert weights(policy, 3) == [0, 0, 0]
    gc.collect()
    assert network() is None
    assert [r.message for r in caplog.records] == [
        "At step 2 the schedule (stop(at=2)) has ended: nothing is aligned any more."
    ]
    assert any(name.startswith("pairs.0.projector") for name, _ in handle.named_parameters())
    assert "idle (the schedule rests), 5 steps so far" in str(handle.status())
    handle.steps = 0  # as a fine-tuning run does that starts from such a checkpoint
    assert weights(policy, 3) == [0.5, 0.5, 0]
    assert host._model is None


def test_steps_between_do_not_free_the_teacher(wrapped: Make) -> None:
    policy = wrapped(schedule="every:3")
    weights(policy, 1)
    model = policy.spatial_forcing.runners[0]._model
    weights(policy, 4)
    assert policy.spatial_forcing.runners[0]._model is model


def test_fault_32_every_training_forward_counts_aligned_or_not(wrapped: Make) -> None:
    policy = wrapped(schedule="linear:10")
    with SpatialForcing.disabled(policy):
        policy(tiny_batch())
    policy.eval()
    with torch.no_grad():
        policy(tiny_batch())
    policy.train()
    with torch.no_grad():
        policy(tiny_batch())
    assert policy.spatial_forcing.steps == 1
    assert weights(policy, 1) == [pytest.approx(0.45)]


def test_fault_32_with_accumulation_a_step_is_an_optimizer_step(wrapped: Make) -> None:
    policy = wrapped(schedule="every:2", grad_accumulation=3)
    assert weights(policy, 9) == [0.5] * 3 + [0] * 3 + [0.5] * 3


def test_fault_32_a_schedule_goes_on_after_a_resume(wrapped: Make, tiny: Make, tmp_path: Path) -> None:
    policy = wrapped("geometry", schedule=[("warm-up", {"steps": 3}), ("cosine", {"delay": 3, "steps": 5})])
    weights(policy, 4)
    policy.spatial_forcing.save(tmp_path)
    rest = weights(policy, 6)
    plain = tiny()
    resumed: Any = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    assert resumed.spatial_forcing.config == policy.spatial_forcing.config
    assert weights(resumed, 6) == rest
    assert rest[0] > rest[3] > 0 == rest[-1]


def test_an_instance_is_taken_and_saved(wrapped: Make) -> None:
    policy = wrapped(schedule=EverySchedule({"n": 2}))
    assert policy.spatial_forcing.config.schedule[0].options == {"n": 2, "compensate": False}
    assert "0.5 × every(n=2) × cosine(" in policy.spatial_forcing.describe()


def test_a_resting_step_logs_the_last_aligned_figures(wrapped: Make) -> None:
    policy = wrapped(schedule="every:2")
    policy(tiny_batch())
    before = policy.spatial_forcing.metrics()
    _, info = policy(tiny_batch(seed=1))
    assert info["sf_effective_weight"] == 0
    assert "sf_loss" not in info
    after = policy.spatial_forcing.metrics()
    assert {key: after[key] for key in before} == before
    assert "schedule every(n=2): weight 0.5 at the coming step" in str(policy.spatial_forcing.status())


def test_a_schedule_without_a_weight_is_an_error(wrapped: Make) -> None:
    with pytest.raises(ConfigError, match="weight is 0, so a schedule has nothing to scale"):
        wrapped(weight=0.0, schedule="stop:5")
