"""A store for reading: its index, and the shards that are opened as they are needed."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from sfkit_store.manifest import Manifest, StoreError
from sfkit_store.shards import FOLDER, NAME, Key, Shard, checksum_fits, damaged, describe, row_bytes, write_file

FILE = "index.parquet"
_ABOUT = b"sfkit.store"
_AGAIN = "Run the same `sfkit store build` again: it goes on where it stopped, and writes the index last."
#: What reading an index may raise that is no index, or a stranger's.
_DAMAGE = (
    pa.ArrowException,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
#: Shards that are open at a time; each takes a file descriptor.
_OPEN = 256


class Store:
    """The features of a teacher by frame.

    Opening reads the manifest and the index, and looks at the size of each shard. Frames are read from memory-mapped
    files, and each value is compared with its checksum. Copies and pickles open the files anew.

    Args:
        folder: Where it was built.

    Attributes:
        manifest: The recipe.
        datasets: Revisions by the ids of the datasets; None where it is not known.

    Raises:
        StoreError: There is no store, its build did not finish, or a file is missing, truncated or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = Manifest.load(self.folder)
        path = self.folder / FILE
        if not path.is_file():
            raise StoreError(f"{self.folder} is not finished: it has no {FILE}.", _AGAIN)
        try:
            self._read_index(path)
        except _DAMAGE as error:
            raise StoreError(f"{path} is damaged: {error}.", f"Delete it. {_AGAIN}") from error
        self._open: OrderedDict[str, Shard] = OrderedDict()

    def _read_index(self, path: Path) -> None:
        # The size of the table is checked before it is read: a small file can hold a table that fills the memory.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            about = json.loads(file.schema_arrow.metadata[_ABOUT])
            self.datasets: dict[str, str | None] = {str(key): value for key, value in about["datasets"].items()}
            self._shards = [(str(name), int(size), int(rows)) for name, size, rows in about["shards"]]
            self._check_files()
            rows = file.metadata.num_rows
            if rows != sum(count for _, _, count in self._shards):
                raise ValueError(f"it has {rows} rows, and the shards {sum(count for _, _, count in self._shards)}")
            table = file.read()
        sources = table.column("source").combine_chunks()
        codes = sources.indices.to_numpy(zero_copy_only=False)
        episodes, self._frames, self._places, self._rows = (
            table.column(name).to_numpy() for name in ("episode", "frame", "shard", "row")
        )
        names = sources.dictionary.to_pylist()
        if len(codes):
            changes = (np.diff(codes) != 0) | (np.diff(episodes) != 0)
            if not bool((changes | (np.diff(self._frames) > 0)).all()):
                raise ValueError("its frames are not in order, or one is there twice")
            if not (self._places.min() >= 0 and self._places.max() < len(self._shards) and self._rows.min() >= 0):
                raise ValueError("it names a shard that is not there")
        starts = np.flatnonzero(np.r_[True, changes]) if len(codes) else np.zeros(0, np.int64)
        ends = np.r_[starts[1:], len(codes)] if len(codes) else starts
        #: Where the frames of an episode begin and end in the columns.
        self._episodes: dict[tuple[str, int], tuple[int, int]] = {
            (names[code], episode): (start, end)
            for code, episode, start, end in zip(
                codes[starts].tolist(), episodes[starts].tolist(), starts.tolist(), ends.tolist(), strict=True
            )
        }
        if len(self._episodes) != len(starts):
            raise ValueError("an episode is there twice")

    def _check_files(self) -> None:
        least = row_bytes(self.manifest)
        for name, size, rows in self._shards:
            path = self.folder / FOLDER / name
            if not NAME.fullmatch(name) or not 0 < rows * least < size:
                raise ValueError(f"it names no shard of this store: {name[:100]!r}")
            if not path.is_file():
                raise damaged(path, "it is missing")
            if path.stat().st_size != size:
                raise damaged(path, f"it has {path.stat().st_size} bytes, and was written with {size}")

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __contains__(self, key: Key) -> bool:
        return self._locate(key) is not None

    @property
    def episodes(self) -> list[tuple[str, int, int]]:
        """``"dataset@digest"``, episode and number of frames of each."""
        return [(source, episode, end - start) for (source, episode), (start, end) in self._episodes.items()]

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(size for _, size, _ in self._shards)

    def _locate(self, key: Key) -> tuple[str, int] | None:
        source, episode, frame = key
        start, end = self._episodes.get((source, episode), (0, 0))
        at = start + int(np.searchsorted(self._frames[start:end], frame))
        if at == end or self._frames[at] != frame:
            return None
        return self._shards[int(self._places[at])][0], int(self._rows[at])

    def read(self, key: Key, names: Iterable[str]) -> list[Tensor]:
        """Some tensors of a frame, by the names of :func:`sfkit_store.shards.row_shapes`.

        Raises:
            StoreError: The frame is not in the store, or damaged.
        """
        found = self._locate(key)
        if found is None:
            raise self.absence(key)
        return self._shard(found[0]).read(found[1], key, names)

    def _shard(self, name: str) -> Shard:
        if name not in self._open:
            self._open[name] = Shard(self.folder / FOLDER / name, self.manifest)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def absence(self, key: Key) -> StoreError:
        """The error about a frame that is not there: of another dataset, edited, or new since the build."""
        source, episode, _ = key
        dataset, _, digest = source.rpartition("@")
        held = sorted({name.rpartition("@")[0] for name, _ in self._episodes})
        others = [name for name, number in self._episodes if number == episode and name.rpartition("@")[0] == dataset]
        if dataset not in held:
            why = (
                f"The store holds frames of {', '.join(held) or 'no dataset'}, and the batch is of {dataset or source}"
            )
            return StoreError(f"{why}: {describe(key)}.", f"Train on that dataset, or build a store of {dataset}.")
        if others and (source, episode) not in self._episodes:
            return StoreError(
                f"The store lacks {describe(key)}: episode {episode} of {dataset} was edited since: its digest was "
                f"{others[0].rpartition('@')[2]}, and is {digest}.",
                _ADDS,
            )
        return StoreError(
            f"The store lacks {describe(key)}, perhaps because the dataset grew since it was built.", _ADDS
        )

    def verify(self) -> Iterator[tuple[str, str]]:
        """Read every byte of every shard; gives the name of each, and what is wrong with it or ``""``."""
        for name, _, rows in self._shards:
            path = self.folder / FOLDER / name
            if not checksum_fits(path):
                yield name, "its checksum does not fit"
                continue
            try:
                keys = Shard(path, self.manifest).keys
            except StoreError as error:
                yield name, error.message
                continue
            wrong = [key for row, key in enumerate(keys) if self._locate(key) != (name, row)]
            count = "" if len(keys) == rows else f"it has {len(keys)} frames, and the index says {rows}"
            yield name, f"the index has {describe(wrong[0])} elsewhere" if wrong else count


_ADDS = "Run the same `sfkit store build` again: it adds what is missing and leaves the rest as it is."


def write_index(folder: Path, shards: Sequence[Shard], datasets: Mapping[str, str | None]) -> None:
    """Write the index of all shards, in the place of an earlier one.

    Raises:
        StoreError: Two rows are of one frame.
    """
    keys = [(*key, number, row) for number, shard in enumerate(shards) for row, key in enumerate(shard.keys)]
    keys.sort()
    for before, after in itertools.pairwise(keys):
        if before[:3] == after[:3]:
            names = {shards[number].path.name for *_, number, _ in (before, after)}
            raise StoreError(
                f"{describe(before[:3])} is twice in the store: in {' and '.join(sorted(names))}.",
                f"Delete one of the two, and run the same `sfkit store build` again. They lie in {folder / FOLDER}.",
            )
    columns = [list(column) for column in zip(*keys, strict=True)] if keys else [[]] * 5
    about = {
        "datasets": dict(sorted(datasets.items())),
        "shards": [(shard.path.name, shard.path.stat().st_size, len(shard.keys)) for shard in shards],
    }
    numbers = {name: pa.array(column, pa.int32()) for name, column in zip(_NUMBERS, columns[1:], strict=True)}
    source = pa.array(columns[0], pa.string()).dictionary_encode()
    table = pa.table({"source": source, **numbers})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about)}), sink, write_page_checksum=True)
    write_file(folder / FILE, sink.getvalue().to_pybytes())


_NUMBERS = ("episode", "frame", "shard", "row")
