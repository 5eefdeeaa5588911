"""Computing a store: every frame once, whole shards alone, the index last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.factory.components import ComponentLike, build_teacher
from sfkit.teachers.base import Teacher
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.resample import resample
from sfkit.views.types import Views
from sfkit_store.encoding import encoded, small_pictures
from sfkit_store.manifest import FILE, FORMAT, Dtype, Manifest, StoredTeacher, StoreError, versions
from sfkit_store.shards import (
    FOLDER,
    PICTURES,
    Key,
    Shard,
    checksum_fits,
    describe,
    number_of,
    row_bytes,
    row_shapes,
    shard_files,
    write_file,
    write_shard,
)
from sfkit_store.store import Store, write_index

#: Called with the frames that are done, and how many there are in all (None: not known).
Progress = Callable[[int, "int | None"], None]


@runtime_checkable
class FrameSource(Protocol):
    """Frames that are known before any is loaded, so that a build that goes on loads only what is missing.

    Attributes:
        batch_size: Frames in each of the ``Views``.
        pixels: Who makes the views, for the manifest.
    """

    batch_size: int
    pixels: str

    @property
    def keys(self) -> Sequence[Key]:
        """Of all frames, in order."""
        ...

    @property
    def datasets(self) -> Mapping[str, str | None]:
        """Revisions by the ids of the datasets; None where it is not known."""
        ...

    def views(self, indices: Sequence[int]) -> Iterator[Views]:
        """The views of some frames, in this order."""
        ...


def build_store(
    folder: str | Path,
    teacher: ComponentLike | Teacher,
    frames: FrameSource | Iterable[Views],
    *,
    grid: tuple[int, int],
    teacher_layers: Sequence[int] | None = None,
    dtype: Dtype = "float32",
    device: str | torch.device = "cpu",
    shard_bytes: int = 2**28,
    repair: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Run a teacher over frames, and store its features at the student's grid.

    A build that was stopped at any point goes on where it stopped, and ends with the same bytes. Called again for a
    dataset that grew, it computes what is new.

    Args:
        folder: The store; made where there is none.
        teacher: Name, name with options, or an instance.
        frames: A :class:`FrameSource`, such as :class:`~sfkit_store.LeRobotFrames`, or any ``Views`` with keys.
        grid: Rows and columns of the student's tokens.
        teacher_layers: By default the layer that the teacher aligns by default.
        dtype: Of the stored features. ``"int8"`` has one scale for each token.
        device: Where the teacher runs.
        shard_bytes: Largest size of a shard, about.
        repair: Read all shards there are, and compute those anew that are damaged.
        progress: Called after each batch.

    Raises:
        StoreError: The folder holds another store, another process builds there, a frame is there twice, or the disk is
            full.
        ConfigError: The teacher gathers statistics in training, so that its features are not fixed; or it has no such
            layer, or a value is out of range.
        ViewsError: Views have no keys.
    """
    folder = Path(folder).expanduser()
    built = build_teacher(teacher)
    if built.state():
        raise ConfigError(
            f"Teacher {built.name!r} gathers statistics while a policy trains: its features are not fixed, and cannot "
            "be stored.",
            "Use it as it is (it has no network to save), or choose another teacher.",
        )
    layers = sorted(set(teacher_layers or [built.default_layer]))
    if not 1 <= layers[0] <= layers[-1] <= built.num_layers:
        raise ConfigError(
            f"Teacher {built.name!r} has layers 1 to {built.num_layers}, not {', '.join(map(str, layers))}.",
            "Choose among them; by default the teacher's default is stored.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        job = _Build(
            folder, built, grid=grid, layers=layers, dtype=dtype, shard_bytes=shard_bytes, device=torch.device(device)
        )
        job.open_shards(repair)
        job.run(frames, progress)
        datasets = frames.datasets if isinstance(frames, FrameSource) else {}
        known = {key[0].rpartition("@")[0]: None for shard in job.shards.values() for key in shard.keys}
        write_index(folder, list(job.shards.values()), {**known, **datasets})
    return Store(folder)


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends, however it does."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(f"Another process builds in {folder}.", "Wait until it is done, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


class _Build:
    """One run of a build.

    Attributes:
        shards: By number, those that are whole.
        device: Where the teacher runs.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Teacher,
        *,
        grid: tuple[int, int],
        layers: Sequence[int],
        dtype: Dtype,
        shard_bytes: int,
        device: torch.device,
    ) -> None:
        self.folder, self.teacher, self.grid, self.layers, self.dtype = folder, teacher, grid, layers, dtype
        self.device = device
        self.shards: dict[int, Shard] = {}
        self._runner = TeacherRunner(teacher)
        self._manifest = Manifest.load(folder) if (folder / FILE).is_file() else None
        self._shard_bytes, self._frames_per_shard = shard_bytes, 0
        self._stored: set[Key] = set()
        self._new: set[Key] = set()
        self._waiting: list[tuple[list[Key], dict[str, Tensor]]] = []

    def open_shards(self, repair: bool) -> None:
        """Open what an earlier run wrote, without what is unfinished or, if asked, damaged."""
        places = self.folder / FOLDER
        places.mkdir(exist_ok=True)
        for left in [*places.glob(".*.unfinished"), *self.folder.glob(".*.unfinished")]:
            left.unlink()
        for path in shard_files(places):
            if self._manifest is None:
                raise StoreError(f"{places} holds shards, and {self.folder} no {FILE}.", "Build in an empty folder.")
            if repair and not checksum_fits(path):
                path.unlink()
                continue
            shard = Shard(path, self._manifest)
            if number_of(path) in self.shards:
                raise StoreError(
                    f"{path.name} and {self.shards[number_of(path)].path.name} have one number.",
                    f"Delete one of the two in {places}.",
                )
            self.shards[number_of(path)] = shard
            self._stored.update(shard.keys)

    def run(self, frames: FrameSource | Iterable[Views], progress: Progress | None) -> None:
        """Compute what is missing."""
        total, batch_size, pixels = None, 1, "the caller"
        stream: Iterable[Views]
        if isinstance(frames, FrameSource):
            keys, batch_size, pixels = frames.keys, frames.batch_size, frames.pixels
            _refuse_twice(keys)
            missing = [index for index, key in enumerate(keys) if key not in self._stored]
            total, stream = len(missing), frames.views(missing)
        else:
            stream = frames
        if self._manifest is not None:  # before any frame is loaded, and where none is missing
            self._refuse_another(self._wanted(self._manifest.cameras, self._manifest.view, pixels))
        done = 0
        for views in stream:
            new = self._new_samples(views)
            if not new and self._manifest is not None:
                continue
            self._require_recipe(views, pixels, batch_size, total)
            self._compute(views, new)
            done += len(new)
            self._flush(self._frames_per_shard)
            if progress is not None:
                progress(done, total)
        self._flush(1)
        if self._manifest is None:
            raise StoreError("There are no frames to store.", "Check the dataset and the episodes that were chosen.")
        self.shards = dict(sorted(self.shards.items()))

    def _new_samples(self, views: Views) -> list[int]:
        """Which samples are not stored yet.

        Raises:
            ViewsError: There are no keys.
            StoreError: A frame comes a second time.
        """
        keys = _keys_of(views)
        new = [index for index, key in enumerate(keys) if key not in self._stored]
        for key in keys:
            if key in self._new:
                raise _twice(key)
            self._new.add(key)
        return new

    def _require_recipe(self, views: Views, pixels: str, batch_size: int, total: int | None) -> None:
        """Compare with the manifest there is, or write one.

        Raises:
            StoreError: The folder holds a store of another recipe, or the disk has no room for this one.
        """
        wanted = self._wanted(views.names, views.size, pixels)
        self._refuse_another(wanted)
        if not self._frames_per_shard:
            size = row_bytes(wanted)
            # Whole batches: a run that goes on then computes the same batches, to the last bit.
            self._frames_per_shard = max(1, self._shard_bytes // size // batch_size) * batch_size
            free = shutil.disk_usage(self.folder).free
            if total is not None and total * size > free:
                raise StoreError(
                    f"The store needs {total * size / 2**30:.1f} GiB more, and {self.folder} has {free / 2**30:.1f}.",
                    "Make room, store fewer layers, or choose a smaller dtype.",
                )
        if self._manifest is None:
            write_file(self.folder / FILE, wanted.text().encode())
            self._manifest = wanted

    def _wanted(self, cameras: tuple[str, ...], view: tuple[int, int], pixels: str) -> Manifest:
        """The recipe of this run."""
        teacher = StoredTeacher.of(self.teacher)
        values = {
            "format": FORMAT,
            "teacher": teacher,
            "teacher_digest": teacher.digest,
            "widths": {layer: self.teacher.dim(layer) for layer in self.layers},
            "grid": self.grid,
            "cameras": cameras,
            "view": view,
            "pixels": pixels,
            "dtype": self.dtype,
            "versions": versions(),
        }
        return Manifest.parse("a store", values)

    def _refuse_another(self, wanted: Manifest) -> None:
        different = [] if self._manifest is None else self._manifest.differences(wanted)
        if different:
            raise StoreError(
                f"{self.folder} holds another store: its {'; its '.join(different)}.",
                "Build into another folder, or with the recipe of this one.",
            )

    def _compute(self, views: Views, new: Sequence[int]) -> None:
        """Encode a batch, of which some samples are new, and keep their rows."""
        keys, samples = _keys_of(views), torch.tensor(list(new), dtype=torch.long)
        whole = _on(self.device, views)
        maps = self._runner.features(whole, self.layers, self.grid)
        rows = {PICTURES: small_pictures(views.images)}
        for layer, features in zip(self.layers, maps, strict=True):
            fitted = resample(features, self.grid)
            if not bool((fitted.values.isfinite().all(-1) | ~fitted.mask).all()):
                raise ShapeError(f"Teacher {self.teacher.name!r} returned NaN or infinity for {describe(keys[0])}.")
            rows.update({f"{layer}.{name}": part.cpu() for name, part in encoded(fitted, self.dtype).items()})
        if new:
            chosen = {name: part.cpu().index_select(0, samples) for name, part in rows.items()}
            self._waiting.append(([keys[index] for index in new], chosen))

    def _flush(self, least: int) -> None:
        """Write shards while so many rows wait."""
        count = sum(len(keys) for keys, _ in self._waiting)
        if not count or count < least:
            return
        assert self._manifest is not None
        keys = [key for some, _ in self._waiting for key in some]
        rows = {name: torch.cat([part[name] for _, part in self._waiting]) for name in row_shapes(self._manifest)}
        for start in range(0, count - least + 1, self._frames_per_shard):
            end = min(start + self._frames_per_shard, count)
            number = next(n for n in range(len(self.shards) + 1) if n not in self.shards)
            places = self.folder / FOLDER
            write_shard(places, number, self._manifest, keys[start:end], {k: v[start:end] for k, v in rows.items()})
            (path,) = (each for each in shard_files(places) if number_of(each) == number)
            self.shards[number] = Shard(path, self._manifest)
        left = {name: part[end:] for name, part in rows.items()}
        self._waiting = [(keys[end:], left)] if end < count else []


def _on(device: torch.device, views: Views) -> Views:
    tensors: dict[str, Any] = {key: value.to(device) for key, value in vars(views).items() if isinstance(value, Tensor)}
    return replace(views, **tensors)


def _keys_of(views: Views) -> tuple[Key, ...]:
    if views.keys is None:
        raise ViewsError(
            "The views do not say which frames they are of: Views.keys is None.",
            'Fill it: one ("dataset@digest", episode, frame) for each sample.',
        )
    return views.keys


def _refuse_twice(keys: Sequence[Key]) -> None:
    if len(set(keys)) < len(keys):
        seen: set[Key] = set()
        raise _twice(next(key for key in keys if key in seen or seen.add(key)))  # type: ignore[func-returns-value]


def _twice(key: Key) -> StoreError:
    return StoreError(
        f"{describe(key)} comes twice, and a key stands for one frame.",
        "Leave one of the two out; datasets that are mixed need different ids.",
    )
