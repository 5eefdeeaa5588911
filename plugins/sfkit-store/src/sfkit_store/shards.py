"""Shards: safetensors files of so many frames, whose names hold their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sfkit_store.encoding import PARTS, SIDE
from sfkit_store.manifest import Manifest, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A dataset's id with the digest of an episode, as ``"lerobot/pusht@1f2e..."``; the episode; the frame within it.
Key: TypeAlias = tuple[str, int, int]

FOLDER = "shards"
#: A number, and the first half of the file's SHA-256. Nothing else is opened, so that no name leads elsewhere.
NAME = re.compile(r"\d{5,9}-[0-9a-f]{32}\.safetensors")
_ABOUT, _KEY, _CHECKS = "sfkit.store", "key", "crc32"
PICTURES = "pixels"
#: No room on the disk, or none left to this user (which Windows does not know).
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
           "I64": torch.int64}  # fmt: skip
_REPAIR = (
    "Run the same `sfkit store build` with --repair (in Python: build_store(..., repair=True)): it computes this shard "
    "alone."
)


def row_shapes(manifest: Manifest) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of what a shard holds of each frame, in the order of its checksums."""
    views = len(manifest.cameras)
    cells = (views, *manifest.grid)
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {PICTURES: (torch.uint8, (views, 3, SIDE, SIDE))}
    for layer, width in manifest.widths.items():
        for part, dtype in PARTS[manifest.dtype].items():
            shapes[f"{layer}.{part}"] = (dtype, (*cells, width) if part == "values" else cells)
    return dict(sorted(shapes.items()))


def row_bytes(manifest: Manifest) -> int:
    """Size of a frame."""
    sizes = (dtype.itemsize * torch.Size(shape).numel() for dtype, shape in row_shapes(manifest).values())
    return sum(sizes)


def write_shard(folder: Path, number: int, manifest: Manifest, keys: Sequence[Key], rows: Mapping[str, Tensor]) -> None:
    """Write the shard of that number: whole, or not at all.

    Args:
        folder: The folder of the shards.
        number: Its place.
        manifest: Of the store.
        keys: One for each frame.
        rows: By the names of :func:`row_shapes`, ``(n, ...)`` each.

    Raises:
        StoreError: The disk is full.
    """
    sources = list(dict.fromkeys(source for source, _, _ in keys))
    tensors = {name: rows[name].contiguous() for name in row_shapes(manifest)}
    checks = [[_crc(tensors[name][row]) for name in tensors] for row in range(len(keys))]
    tensors[_KEY] = torch.tensor([[sources.index(source), episode, frame] for source, episode, frame in keys])
    tensors[_CHECKS] = torch.tensor(checks)
    # One entry: safetensors writes several in an order that changes from process to process.
    data = save(tensors, {_ABOUT: json.dumps({"manifest": manifest.digest, "sources": sources})})
    name = f"{number:05}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    write_file(folder / name, data)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, whatever happens to the process or the machine.

    Raises:
        StoreError: The disk is full.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise StoreError(
                f"The disk is full: {path} of {len(data) / 2**20:.0f} MiB could not be written.",
                "Make room, and run the same build again: it goes on where it stopped.",
            ) from error
        raise
    if os.name == "posix":  # the folder holds the name
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def shard_files(folder: Path) -> list[Path]:
    """The shards in a folder, by number."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (number_of(path), path.name))


def number_of(path: Path) -> int:
    """The number in the name of a shard."""
    return int(path.name.partition("-")[0])


def checksum_fits(path: Path) -> bool:
    """Whether a shard is what was written: reads all of it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return path.stem.partition("-")[2] == digest.hexdigest()[:32]


@dataclass
class Shard:
    """A shard, memory-mapped.

    Attributes:
        path: The file.
        manifest: Of its store.
        keys: Of its frames.
    """

    path: Path
    manifest: Manifest
    keys: list[Key] = field(init=False, repr=False)
    _checks: list[list[int]] = field(init=False, repr=False)
    _slices: dict[str, Any] = field(init=False, repr=False)
    _columns: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with _damage_of(self.path):
            file: Any = safe_open(self.path, framework="pt")
            about = json.loads(file.metadata()[_ABOUT])
            if about["manifest"] != self.manifest.digest:
                raise StoreError(
                    f"{self.path} is of another store: its manifest has the digest {about['manifest']}, the one beside "
                    f"it {self.manifest.digest}.",
                    f"Put the shard back where it belongs. {_REPAIR}",
                )
            self._checks = file.get_tensor(_CHECKS).tolist()
            keys = file.get_tensor(_KEY)
            sources = list(map(str, about["sources"]))
            self.keys = [(sources[source], episode, frame) for source, episode, frame in keys.tolist()]
            shapes = row_shapes(self.manifest)
            self._columns = {name: column for column, name in enumerate(shapes)}
            self._slices = {name: file.get_slice(name) for name in shapes}
            for name, (dtype, shape) in shapes.items():
                self._expect(name, _DTYPES.get(self._slices[name].get_dtype()), dtype, self._slices[name], shape)
            if [len(row) for row in self._checks] != [len(shapes)] * len(self.keys):
                raise ValueError(f"{_CHECKS} is not of {len(self.keys)} rows of {len(shapes)}")

    def _expect(self, name: str, found: object, dtype: object, part: Any, shape: tuple[int, ...]) -> None:
        if found != dtype or tuple(part.get_shape()) != (len(self.keys), *shape):
            raise ValueError(
                f"{name} is {found} of shape {part.get_shape()}, not {dtype} of {(len(self.keys), *shape)}"
            )

    def read(self, row: int, key: Key, names: Iterable[str]) -> list[Tensor]:
        """Some tensors of a frame.

        Args:
            row: Its place.
            key: The frame that must be there.
            names: As in :func:`row_shapes`.

        Raises:
            StoreError: Another frame is there, or its values are not those that were written.
        """
        if not (row < len(self.keys) and self.keys[row] == key):
            raise StoreError(
                f"{self.path.name} holds another frame than the index says: {describe(key)} is not in row {row}.",
                "Run the same `sfkit store build` again: it writes the index anew, and computes nothing.",
            )
        with _damage_of(self.path):
            found = {name: self._slices[name][row] for name in names}
        checks = self._checks[row]
        for name, tensor in found.items():
            if _crc(tensor) != checks[self._columns[name]]:
                raise damaged(self.path, f"the checksum of {name} of {describe(key)} does not fit")
        return list(found.values())


def damaged(path: Path, why: str) -> StoreError:
    """The error about a shard that is not what was written."""
    return StoreError(f"{path} is damaged: {why}.", _REPAIR)


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing.", _REPAIR) from error
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def describe(key: Key) -> str:
    """A frame, for errors."""
    source, episode, frame = key
    dataset, _, digest = source.rpartition("@")
    return f"frame {frame} of episode {episode} of {dataset or source}" + (f" (digest {digest})" if dataset else "")


def _crc(tensor: Tensor) -> int:
    """CRC-32 of the bytes of ``(*)``."""
    data: Any = tensor.contiguous().view(torch.uint8).numpy()
    return zlib.crc32(data)
