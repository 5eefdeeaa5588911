"""A process is killed while it saves: policy and projector are of one step afterwards, or a warning says otherwise."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfkit import SfkitWarning, SpatialForcing
from sfkit.saving import hub
from sfkit.testing.tiny import TinyAdapter, TinyPolicy
from sfkit.utils.places import digest_of_parts

WORKER = Path(__file__).parents[1] / "workers" / "killed_saves.py"
#: ``make full`` kills 200 times.
KILLS = int(os.environ.get("SFKIT_KILLS", "20"))


def load(folder: Path) -> tuple[int, list[str]]:
    """The step of the projector, and what was warned."""
    policy = TinyPolicy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SfkitWarning)
        SpatialForcing.from_pretrained(policy, folder, adapter=TinyAdapter(policy))
    return policy.spatial_forcing.steps, [str(item.message) for item in caught]  # type: ignore[union-attr,return-value]


def save(folder: Path) -> Any:
    policy = TinyPolicy()
    save_file(dict(policy.state_dict()), folder / "model.safetensors")
    handle: Any = SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy)).spatial_forcing
    handle.save(folder)
    return handle


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_fault_69_kills_pair_no_policy_with_another_projector(tmp_path: Path) -> None:
    chance = random.Random(0)
    command, pipe = [sys.executable, str(WORKER)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for number in range(KILLS):
            folder = tmp_path / str(number)
            folder.mkdir()
            worker.stdin.write(f"{folder}\n")
            saver = int(worker.stdout.readline())
            time.sleep(chance.uniform(0, 0.05))
            os.kill(saver, signal.SIGKILL)
            step, messages = load(folder)
            policy = int(load_file(folder / "model.safetensors")["step"])
            assert policy - step in (0, 1)
            assert policy == step or "model.safetensors" in messages[0]


def test_fault_69_a_policy_saved_alone_since_then_is_named(tmp_path: Path) -> None:
    handle = save(tmp_path)
    assert load(tmp_path) == (0, [])
    save_file({"other": torch.ones(3)}, tmp_path / "model.safetensors")
    assert "model.safetensors" in load(tmp_path)[1][0]
    handle.save(tmp_path)
    assert load(tmp_path) == (0, [])
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    assert "model.safetensors" in load(tmp_path)[1][0], "it was saved in other parts"


def test_files_of_a_trainer_do_not_count(tmp_path: Path) -> None:
    handle = save(tmp_path)
    for name in ("optimizer.bin", "training_args.bin", "policy_preprocessor_step_3.safetensors", "config.json"):
        (tmp_path / name).write_text("later")
    assert load(tmp_path) == (0, [])
    assert handle.save(tmp_path)
    assert list(hub.policy_files(tmp_path)) == ["model.safetensors"]


def test_a_projector_beside_no_policy_loads_in_silence(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load(tmp_path) == (0, [])


@pytest.mark.parametrize("place", [0, 4095, 70 * 2**20 - 1])
def test_the_digest_of_a_large_file_reads_both_ends(tmp_path: Path, place: int) -> None:
    file = tmp_path / "model.bin"
    with file.open("wb") as stream:
        stream.truncate(70 * 2**20)
    before = digest_of_parts(file)
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"x")
    assert digest_of_parts(file) != before
