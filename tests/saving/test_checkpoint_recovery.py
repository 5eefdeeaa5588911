"""A process that is killed while it saves leaves something whole behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.saving import checkpoint
from sfkit.testing.tiny import TinyAdapter, TinyPolicy

PROGRAM = """
import os, signal, sys
from sfkit import SpatialForcing
from sfkit.saving import checkpoint
from sfkit.testing.tiny import TinyAdapter, TinyPolicy

policy = TinyPolicy()
handle = SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy)).spatial_forcing
handle.steps = 1
handle.save(sys.argv[1])
handle.steps = 2
name = sys.argv[2]
whole, calls = getattr(checkpoint.os, "replace"), []


def replace(*args):
    calls.append(args)
    if len(calls) == int(name):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)


checkpoint.os.replace = replace
handle.save(sys.argv[1])
"""


def _killed(folder: Path, call: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), str(call)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr


def _steps(folder: Path) -> int:
    policy = TinyPolicy()
    return int(SpatialForcing.from_pretrained(policy, folder, adapter=TinyAdapter(policy)).spatial_forcing.steps)


@pytest.mark.parametrize("call", [1, 2])
def test_fault_31_a_killed_save_leaves_the_earlier_folder(tmp_path: Path, call: int) -> None:
    _killed(tmp_path, call)
    assert _steps(tmp_path) == 1
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    policy.spatial_forcing.save(tmp_path)  # type: ignore[union-attr,operator]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FOLDER]
    assert _steps(tmp_path) == 0


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / f"{checkpoint._prefix()}abc"
    mine.mkdir()
    assert mine.name.split("-")[-2] == str(os.getpid())
    checkpoint._tidy(tmp_path)
    assert mine.is_dir()


def test_save_callbacks_get_the_folder_after_each_save(tmp_path: Path) -> None:
    class Saved(TinyPolicy):
        def save_pretrained(self, folder: Path) -> None:
            torch.save(self.state_dict(), folder / "weights.pt")

    policy = Saved()
    SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    seen: list[tuple[Path, bool]] = []
    policy.spatial_forcing.save_callbacks.append(  # type: ignore[union-attr,operator]
        lambda folder: seen.append((folder, (folder / checkpoint.FOLDER).is_dir()))
    )
    policy.save_pretrained(tmp_path)
    assert seen == [(tmp_path, True)]
