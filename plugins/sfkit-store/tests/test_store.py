"""Reading a store: opened in no time, compared with its checksums, and safe where a stranger made it."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sfkit_store import Store, StoreError
from sfkit_store.manifest import Manifest
from sfkit_store.shards import shard_files

KEY = ("local/toy@0123456789abcdef", 0, 1)


def first_shard(folder: Path) -> Path:
    return shard_files(folder / "shards")[0]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_each_frame_has_its_own_features(tiny: SimpleNamespace, folder: Path) -> None:
    store = Store(folder)
    read = [store.read(key, ["2.values", "3.values"]) for key in tiny.Frames().keys]
    assert all(torch.equal(deep * 2, shallow * 3) for shallow, deep in read), "layer k is k times the same map"
    assert len({float(shallow.sum()) for shallow, _ in read}) == tiny.FRAMES


def test_a_copy_opens_the_files_anew(folder: Path) -> None:
    store = Store(folder)
    store.read(KEY, ["2.values"])
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.read(KEY, ["2.values"])[0], store.read(KEY, ["2.values"])[0])


def test_a_large_index_opens_quickly_and_finds_its_frames(folder: Path) -> None:
    frames, length = 300_000, 300
    index = np.arange(frames)
    about = {"datasets": {}, "shards": [["00000-" + "0" * 32 + ".safetensors", 2**50, frames]]}
    sources = pa.array([f"data{number}@0" for number in range(7)]).take(pa.array(index // length % 7))
    numbers = {"episode": index // length // 7, "frame": index % length, "shard": index * 0, "row": index}
    table = pa.table({"source": sources, **{name: pa.array(x, pa.int32()) for name, x in numbers.items()}})
    table = table.sort_by([("source", "ascending"), ("episode", "ascending"), ("frame", "ascending")])
    table = table.set_column(0, "source", table.column("source").combine_chunks().dictionary_encode())
    pq.write_table(table.replace_schema_metadata({"sfkit.store": json.dumps(about)}), folder / "index.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_check_files", lambda store: None)  # there is no such shard
        start = time.process_time()
        store = Store(folder)
        print(f"opened in {(time.process_time() - start) * 1000:.0f} ms")
    assert len(store) == frames
    for number in (0, 1, 12_345, frames - 1):
        key = (f"data{number // length % 7}@0", number // length // 7, number % length)
        assert store._locate(key) == (about["shards"][0][0], number)
    assert ("data0@0", 0, length) not in store
    assert ("data9@0", 0, 0) not in store


def test_a_truncated_shard_is_named(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: it has \d+ bytes(?s:.*)--repair"):
        Store(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    path = first_shard(folder)
    path.unlink()
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: it is missing(?s:.*)--repair"):
        Store(folder)


def test_fault_87_a_flipped_bit_is_found_when_it_is_read(folder: Path) -> None:
    path = first_shard(folder)
    values = Store(folder).read(KEY, ["3.values"])[0].numpy().tobytes()
    flip(path, path.read_bytes().index(values) + 5)
    store = Store(folder)
    store.read(KEY, ["2.values"])
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: the checksum of 3.values of frame 1 of episode 0"):
        store.read(KEY, ["3.values"])


def test_fault_87_a_repair_computes_the_damaged_shard_alone(tiny: SimpleNamespace, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in shard_files(folder / "shards")}
    damaged = sorted(before)[1]
    flip(folder / "shards" / damaged, len(before[damaged]) - 3)
    assert [name for name, fault in Store(folder).verify() if fault] == [damaged]
    frames = tiny.Frames()
    assert all(not fault for _, fault in tiny.build(folder, frames, repair=True).verify())
    assert frames.loaded == [4, 5, 6, 7]
    assert {path.name: path.read_bytes() for path in shard_files(folder / "shards")} == before


def test_fault_85_an_index_of_other_rows_is_noticed(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    rows = table.column("row").to_numpy().copy()
    rows[[0, 1]] = rows[[1, 0]]
    column = table.schema.get_field_index("row")
    pq.write_table(table.set_column(column, "row", pa.array(rows)), folder / "index.parquet")
    store = Store(folder)
    with pytest.raises(StoreError, match=r"holds another frame than the index says: frame 1 of episode 0 of local/toy"):
        store.read(KEY, ["2.values"])
    assert any("elsewhere" in fault for _, fault in store.verify())


def test_fault_37_a_shard_of_another_store_is_refused(tiny: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    tiny.build(tmp_path / "other", dtype="bfloat16", shard_bytes=4 * 3600)
    strange = first_shard(tmp_path / "other")
    strange.rename(folder / "shards" / f"00009-{strange.name.partition('-')[2]}")
    with pytest.raises(StoreError, match="is of another store: its manifest has the digest"):
        tiny.build(folder)


def edit_manifest(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def replace_manifest(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_text(text) and None


def edit_index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = pq.read_table(folder / "index.parquet")
        about = json.loads(table.schema.metadata[b"sfkit.store"])
        change(about)
        pq.write_table(table.replace_schema_metadata({"sfkit.store": json.dumps(about)}), folder / "index.parquet")

    return edit


def rename_shard(name: object) -> Callable[[Path], None]:
    return edit_index(lambda about: about["shards"][0].__setitem__(0, name))


def replace_index(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "index.parquet").write_bytes(data) and None


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (edit_manifest(format=2), "is of format 2; this sfkit-store reads format 1"),
        (edit_manifest(format=10**400), "could not be read|is of format 1000"),
        (edit_manifest(grid=[10**30, 4]), "grid.0 must be <= 16384"),
        (edit_manifest(view=[0, 4]), "view.0 must be >= 1, got 0"),
        (edit_manifest(widths={"2": 10**9}), "widths.2 must be <= 1048576"),
        (edit_manifest(widths={"9": 4}), "it has layer 9 of 3"),
        (edit_manifest(run="rm"), "unknown option 'run'"),
        (edit_manifest(teacher_digest="0" * 64), "teacher_digest is 000"),
        (edit_manifest(dtype="float64"), "dtype must be"),
        (replace_manifest("[" * 100_000), "nested more than"),
        (replace_manifest("[" * 100 + "]" * 100), "nested more than 64 deep"),
        (replace_manifest("[1]"), "it holds a list"),
        (replace_manifest('{"format": 1e999}'), "is no finite number"),
        (replace_manifest(" " * 2**21), "larger than"),
        (replace_manifest("\udcff".encode("utf-8", "surrogateescape").decode("latin1")), "could not be read"),
        (rename_shard("../../../etc/passwd"), "names no shard of this store: '../../../etc/passwd'"),
        (rename_shard("/etc/passwd"), "names no shard of this store"),
        (rename_shard(["deep"]), "names no shard of this store"),
        (edit_index(lambda about: about["shards"][0].__setitem__(1, math.inf)), "index.parquet is damaged"),
        (edit_index(lambda about: about["shards"][0].__setitem__(2, 10**9)), "names no shard of this store"),
        (edit_index(lambda about: about.update(datasets=[1])), "index.parquet is damaged"),
        (edit_index(lambda about: about.pop("shards")), "index.parquet is damaged"),
        (replace_index(b""), "index.parquet is damaged"),
        (replace_index(b"PAR1" + b"\xff" * 400 + b"PAR1"), "index.parquet is damaged"),
    ],
)
def test_files_of_a_stranger_are_read_with_care(harm: Callable[[Path], None], says: str, folder: Path) -> None:
    harm(folder)
    with pytest.raises(StoreError, match=says):
        Store(folder)


def test_a_flipped_bit_in_the_index_is_found(folder: Path) -> None:
    path = folder / "index.parquet"
    whole = path.read_bytes()
    for at in range(4, len(whole) - 8, 37):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        try:
            store = Store(folder)
            found = [store.read(key, ["2.values"]) for key in [KEY]]
        except StoreError:
            continue
        path.write_bytes(whole)
        assert torch.equal(found[0][0], Store(folder).read(KEY, ["2.values"])[0])


def test_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no feature store: it has no manifest\.json"):
        Store(tmp_path)


def test_differences_name_what_differs(folder: Path) -> None:
    manifest = Manifest.load(folder)
    other = manifest.model_copy(update={"view": (8, 8), "versions": {}})
    assert manifest.differences(other) == ["view is [32, 32], not [8, 8]"]
    assert manifest.differences(manifest.model_copy(update={"versions": {}})) == []
