"""A process is killed while it builds: what is there is whole, and the same build ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sfkit_store import Store, StoreError
from sfkit_store.shards import checksum_fits, shard_files

WORKER = Path(__file__).parent / "workers" / "killed_builds.py"
#: ``make full`` kills more often.
KILLS = int(os.environ.get("SFKIT_KILLS", "10"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_fault_86_a_killed_build_loses_nothing_and_goes_on(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.build(tmp_path / "whole", tiny.Frames(24))
    whole, chance = contents(tmp_path / "whole"), random.Random(0)
    with subprocess.Popen([sys.executable, str(WORKER)], stdin=-1, stdout=-1, text=True, bufsize=1) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for number in range(KILLS):
            folder = tmp_path / str(number)
            worker.stdin.write(f"{folder}\n")
            builder = int(worker.stdout.readline())
            # By what is done and not by the clock: how fast the machine is does not matter.
            shards = chance.randrange(6)
            while len(shard_files(folder / "shards")) < shards:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.01))
            os.kill(builder, signal.SIGKILL)
            assert worker.stdout.readline() == "killed\n"
            kept = shard_files(folder / "shards")
            assert all(map(checksum_fits, kept))
            if (folder / "index.parquet").is_file():
                assert all(not fault for _, fault in Store(folder).verify())
            else:
                with pytest.raises(StoreError, match=r"not finished|no feature store"):
                    Store(folder)
            frames = tiny.Frames(24)
            tiny.build(folder, frames)
            assert len(frames.loaded) == 24 - 4 * len(kept)
            assert contents(folder) == whole


def test_fault_86_a_build_without_its_index_is_not_read(tiny: SimpleNamespace, folder: Path) -> None:
    (folder / "index.parquet").unlink()
    with pytest.raises(StoreError, match="is not finished"):
        Store(folder)
    frames = tiny.Frames()
    assert len(tiny.build(folder, frames)) == tiny.FRAMES
    assert frames.loaded == []
