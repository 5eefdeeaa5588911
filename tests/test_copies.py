"""deepcopy (EMA), pickle, torch.save and spawned workers."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sfkit import SpatialForcing
from sfkit.testing.tiny import TinyPolicy, tiny_batch
from sfkit.training.taps import Residual

Make = Callable[..., TinyPolicy]


def loss_of(policy: TinyPolicy, seed: int = 3) -> tuple[float, float]:
    torch.manual_seed(seed)
    loss, info = policy(tiny_batch(seed=seed))
    return loss.item(), info["sf_loss"]


def check_independent(policy: TinyPolicy, other: TinyPolicy) -> None:
    assert other is not policy
    assert type(other) is type(policy)
    handle = other.spatial_forcing
    assert handle.adapter.policy is other, "the copy's adapter must not look at the original"
    assert handle.pairs[0].projector.fc1.weight is not policy.spatial_forcing.pairs[0].projector.fc1.weight
    assert loss_of(policy) == loss_of(other)
    fired = policy.spatial_forcing.taps.at[Residual(2)].fired
    policy.spatial_forcing.taps.at[Residual(2)].fired = -1
    loss_of(other)
    assert policy.spatial_forcing.taps.at[Residual(2)].fired == -1, "the copy's hook must not follow the original's tap"
    policy.spatial_forcing.taps.at[Residual(2)].fired = fired
    SpatialForcing.unwrap(other)
    assert not other.blocks[2].input_layernorm._forward_pre_hooks
    assert policy.blocks[2].input_layernorm._forward_pre_hooks
    assert loss_of(policy)[1] > 0


def test_deepcopy_between_steps(wrapped: Make) -> None:
    policy = wrapped()
    policy(tiny_batch())[0].backward()
    other = copy.deepcopy(policy)
    assert other.spatial_forcing.runners[0] is policy.spatial_forcing.runners[0], "an EMA copy needs no second teacher"
    check_independent(policy, other)


def test_an_ema_copy_evaluates_like_the_policy(wrapped: Make) -> None:
    policy = wrapped()
    average = torch.optim.swa_utils.AveragedModel(policy)
    average.update_parameters(policy)
    with torch.no_grad():
        policy.eval(), average.eval()
        assert torch.equal(policy(tiny_batch())[0], average(tiny_batch())[0])


def test_pickle(wrapped: Make) -> None:
    policy = wrapped("geometry")
    for seed in range(40):
        policy(tiny_batch(seed=seed))
    check_independent(policy, pickle.loads(pickle.dumps(policy)))


def test_torch_save(wrapped: Make) -> None:
    policy, file = wrapped(), io.BytesIO()
    policy(tiny_batch())
    torch.save(policy, file)
    file.seek(0)
    check_independent(policy, torch.load(file, weights_only=False))


def test_a_pickle_opens_as_the_plain_class_after_unwrap(wrapped: Make) -> None:
    policy = SpatialForcing.unwrap(wrapped())
    assert b"sfkit.training.attach" not in pickle.dumps(policy)


def test_spawned_workers(wrapped: Make, tmp_path: Path) -> None:
    policy = wrapped()
    torch.save(policy, tmp_path / "policy.pt")
    # A script, because a spawned process imports its main module by its path.
    command = [sys.executable, str(Path(__file__).parent / "workers" / "spawned.py"), str(tmp_path / "policy.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == loss_of(policy)
