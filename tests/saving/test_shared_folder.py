"""Several processes write and read one folder; a user's own files, permissions and links in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sfkit import SpatialForcing
from sfkit.errors import CheckpointError
from sfkit.saving import checkpoint
from sfkit.testing.tiny import TinyAdapter, TinyPolicy

WORKER = Path(__file__).parents[1] / "workers" / "saver.py"
SAVES = 60
#: Seconds for all saves, on a crowded machine; on an idle one they take five.
PATIENCE = 240


def make() -> Any:
    policy = TinyPolicy()
    return SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy)).spatial_forcing


def listing(folder: Path) -> list[tuple[str, int, int]]:
    found = sorted(folder.rglob("*"))
    return [(str(path.relative_to(folder)), path.stat().st_ino, path.stat().st_mtime_ns) for path in found]


@pytest.mark.parametrize("writers", [2, 3])
def test_several_writers_and_a_reader_never_fail(tmp_path: Path, writers: int) -> None:
    make().save(tmp_path)
    command = [sys.executable, str(WORKER), str(tmp_path), str(SAVES)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(writers)]
    for process in running:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    handle, reads, end = make(), 0, time.monotonic() + PATIENCE
    while any(process.poll() is None for process in running):
        assert time.monotonic() < end, [process.kill() for process in running]
        checkpoint.load_into(handle, checkpoint.locate(tmp_path))
        reads += 1
        time.sleep(0.02)
    assert [(process.wait(), process.stderr.read()) for process in running] == [(0, "")] * writers  # type: ignore[union-attr]
    for process in running:
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()  # type: ignore[union-attr]
    assert reads
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FOLDER]
    checkpoint.load_into(handle, checkpoint.locate(tmp_path))
    assert handle.steps == SAVES - 1


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    make().save(tmp_path)
    work = tmp_path / f".{checkpoint.FOLDER}-host-1-abc"
    work.mkdir()
    (tmp_path / checkpoint.FOLDER).rename(work / "earlier")
    before = listing(tmp_path)
    policy = TinyPolicy()
    SpatialForcing.from_pretrained(policy, tmp_path, adapter=TinyAdapter(policy))
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_leftovers_in_a_read_only_folder_are_read(tmp_path: Path) -> None:
    make().save(tmp_path)
    work = tmp_path / f".{checkpoint.FOLDER}-host-1-abc"
    work.mkdir()
    (tmp_path / checkpoint.FOLDER).rename(work / "earlier")
    tmp_path.chmod(0o555)
    try:
        assert checkpoint.read(checkpoint.locate(tmp_path)).config.pairs
        if not os.access(tmp_path, os.W_OK):  # not as root
            with pytest.raises(CheckpointError, match="could not be written"):
                make().save(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_modes_of_all_files_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        make().save(tmp_path)
    finally:
        os.umask(before)
    files = [*(tmp_path / checkpoint.FOLDER).iterdir()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_fault_68_a_users_own_files_survive_each_save(tmp_path: Path) -> None:
    make().save(tmp_path)
    folder = tmp_path / checkpoint.FOLDER
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "config.json").write_text("mine as well")
    (folder / "README.md").write_text("ours")
    for _ in range(2):
        make().save(tmp_path)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "plots" / "config.json").read_text() == "mine as well"
    assert (folder / "README.md").read_text() != "ours"
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FOLDER]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_fault_68_what_is_no_folder_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / checkpoint.FOLDER
    target.symlink_to(tmp_path / "nowhere") if kind == "link" else target.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file, or a link to nothing"):
        make().save(tmp_path)
    assert target.is_symlink() or target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FOLDER]


@pytest.mark.parametrize("source", ["x" * 5000, "/".join(["x" * 200] * 30), "a\0b", "no/such/place", "\ud800"])
def test_a_source_that_is_no_name_is_our_own_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError):
        checkpoint.locate(source)


def test_an_interrupt_between_the_renames_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = make()
    handle.save(tmp_path)
    handle.steps = 5

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "copytree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        handle.save(tmp_path)
    checkpoint.load_into(handle, checkpoint.locate(tmp_path))
    assert handle.steps == 0
