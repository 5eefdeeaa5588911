"""The files beside a policy's own: ``spatial_forcing/config.json`` and ``spatial_forcing/projector.safetensors``.

Safetensors only, written to a temporary folder and renamed, and checked key by key when read. A teacher's weights are
never written: its identity and license are recorded.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfkit import __version__
from sfkit.config import SpatialForcingConfig
from sfkit.errors import CheckpointError, ConfigError
from sfkit.health.figures import sample_of
from sfkit.saving import hub
from sfkit.saving.hub import CONFIG, FOLDER, LIMITS, PROJECTOR, README, Record, download, readme, refuse_size
from sfkit.saving.trust import Given, Origin, Published
from sfkit.teachers.base import Teacher, license_note
from sfkit.training import state
from sfkit.training.step import Aligner
from sfkit.utils.places import read_json

T = TypeVar("T")

_FORMAT = "sfkit.checkpoint/5"
#: Prefixes of entries that depend on weight and schedule, and of the health monitor's.
_WEIGHTING = ("schedule.", "balance.", "measured")
_HEALTH = "health."
#: How often a folder is looked for that other processes replace, and replaced.
_TRIES = 200
#: The folder that is being replaced, within the temporary one.
_EARLIER = "earlier"


def save(
    directory: str | Path, config: SpatialForcingConfig, tensors: Mapping[str, Tensor], teachers: Sequence[Teacher]
) -> None:
    """Write ``directory/spatial_forcing/``; an interruption leaves the earlier folder as it was."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    public = Published.of(config)
    identities = [{key: public.text(value) for key, value in teacher.identity.items()} for teacher in teachers]
    notes = [license_note(item) for item, teacher in zip(identities, teachers, strict=True) if teacher.noncommercial]
    record = {
        "format": _FORMAT,
        "sfkit_version": __version__,
        "versions": hub.versions(config),
        "config": public.config.model_dump(mode="json"),
        "teachers": identities,
        "policy_files": hub.policy_files(directory),
    }
    try:
        _tidy(directory)
        # Beside the target: a rename is atomic within one file system alone.
        work = Path(tempfile.mkdtemp(prefix=_prefix(), dir=directory))
        try:
            # mkdtemp's own folder is private to the user; the one inside has the usual permissions.
            fresh = work / "fresh"
            fresh.mkdir()
            save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, fresh / PROJECTOR)
            (fresh / PROJECTOR).chmod(fresh.stat().st_mode & 0o666)  # safetensors' own is private, too
            (fresh / CONFIG).write_text(json.dumps(record, indent=2) + "\n")
            (fresh / README).write_text(readme(public.config, identities, notes))
            _install(fresh, directory / FOLDER, work / _EARLIER)
        finally:
            # After an exception between the two renames, the earlier folder goes back before its parent is removed.
            _recover(work)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"{directory / FOLDER} could not be written: {error}", "Check the disk and the permissions of the folder."
        ) from error


def _install(fresh: Path, target: Path, earlier: Path) -> None:
    """Replace ``target`` by ``fresh``, with the user's own files; of several processes that do so the last one wins.

    Raises:
        CheckpointError: Something else than a folder is in the place, or other processes never leave it.
    """
    for _ in range(_TRIES):
        if _is_blocked(target):
            raise CheckpointError(f"{target} is a file, or a link to nothing.", "Move it away, and save again.")
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, earlier)  # noqa: PTH105 - folders are replaced by renaming
            shutil.copytree(earlier, fresh, symlinks=True, ignore=_ours, dirs_exist_ok=True)
        try:
            os.replace(fresh, target)  # noqa: PTH105
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster; its folder is replaced in the next turn.
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            return
    raise CheckpointError(f"{target} is replaced by other processes all the time.", "Save from one process.")


def _is_blocked(target: Path) -> bool:
    """Whether something else than a folder is in the place; asked once, as another process may move the folder away."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and target.is_dir()))


def _ours(folder: str, names: Sequence[str]) -> set[str]:
    """The files of sfkit; in folders inside, all are the user's."""
    return {CONFIG, PROJECTOR, README}.intersection(names) if Path(folder).name == _EARLIER else set()


def is_scattered(tensors: Mapping[str, Tensor]) -> bool:
    """Whether each process holds a part of these tensors, as under FSDP2. Their class depends on torch's version."""
    return any(hasattr(value, "full_tensor") for value in tensors.values())


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scattered tensors in one piece. All processes must call this."""
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The handle's part of a policy's state, under the handle's own names."""
    prefix = f"{FOLDER}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _prefix() -> str:
    """The beginning of the names of this process's temporary folders."""
    return f".{FOLDER}-{platform.node()}-{os.getpid()}-"


def _tidy(directory: Path) -> None:
    """Remove what killed processes of this machine left behind while they saved."""
    # Process ids mean nothing on another machine, whose folders on a shared disk stay.
    for work in directory.glob(f".{FOLDER}-{glob.escape(platform.node())}-*"):
        pid = work.name.rsplit("-", 2)[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            _recover(work)
            shutil.rmtree(work, ignore_errors=True)


def _recover(work: Path) -> None:
    """Take the earlier folder back, where a process ended after it moved it away, unless there is a newer one."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(work.parent / FOLDER):
            os.replace(work / _EARLIER, work.parent / FOLDER)  # noqa: PTH105 - folders are replaced by renaming


def _read(folder: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` finds in a folder that other processes may be replacing. Nothing is moved.

    Between the two renames of a save, also of one that was killed there, the earlier folder is read where it lies.

    Raises:
        OSError: There is nothing to read.
    """
    for _ in range(_TRIES):
        leftovers = folder.parent.glob(f".{FOLDER}-*/{_EARLIER}") if folder.name == FOLDER else ()
        for place in (folder, *sorted(leftovers, key=_time, reverse=True)):
            with contextlib.suppress(FileNotFoundError):
                return read(place)
        if not any(folder.parent.glob(f".{FOLDER}-*")):
            break
        time.sleep(0.01)
    return read(folder)


def _time(folder: Path) -> float:
    try:
        return (folder / CONFIG).stat().st_mtime
    except OSError:
        return 0.0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs under another user
        return True
    return True


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The ``spatial_forcing`` folder of a local checkpoint or of a Hub repository (downloaded).

    Raises:
        CheckpointError: There is none.
    """
    root = Path(source) if _exists(source) else download(str(source), revision)
    for folder in (root / FOLDER, root):
        with contextlib.suppress(OSError):
            for path, size in _read(folder, _sizes).items():
                refuse_size(str(folder / path), f"{FOLDER}/{path}", size)
            return folder
    raise CheckpointError(
        f"{source} has no {FOLDER}/ folder.", "Save the wrapped policy with save_pretrained, or its handle with save."
    )


def _exists(source: str | Path) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _sizes(folder: Path) -> dict[str, int]:
    """Of the files that are read, the two that must be there among them."""
    names = [CONFIG, PROJECTOR, *([README] if (folder / README).is_file() else [])]
    return {name: (folder / name).stat().st_size for name in names}


def origin_of(source: str | Path, folder: Path, record: Record) -> Origin:
    """Where the configuration of a checkpoint was read, for :func:`sfkit.saving.trust.admit`."""
    local = _exists(source)
    file = str(folder / CONFIG) if local else f"{FOLDER}/{CONFIG} of the repository {str(source)!r}"
    ask = "add options={{{!r}: {!r}}} to the call".format
    return Origin(file, local, lambda name, options: ask(name, dict(options)), record.versions)


def read(folder: Path) -> Record:
    """Read what was saved beside the projector.

    Raises:
        CheckpointError: It is damaged, or was written by a version with another format.
    """
    try:
        record = _read(folder, lambda place: read_json(place / CONFIG, size=LIMITS[f"{FOLDER}/{CONFIG}"]))
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        if record.get("format") != _FORMAT:
            raise CheckpointError(
                f"{folder / CONFIG} has format {record.get('format')!r}, expected {_FORMAT!r}.",
                f"It was written by sfkit {record.get('sfkit_version', 'of unknown version')}: use that version.",
            )
        config = SpatialForcingConfig.parse(str(folder / CONFIG), record["config"])
        return Record(config, dict(record["versions"]), dict(record["policy_files"]))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG} could not be read: {error}") from error


def load_into(
    handle: Aligner,
    folder: Path,
    record: Record | None = None,
    given: Collection[str] = (),
    options: Given | None = None,
) -> None:
    """Load projector and state, strictly: each entry that is missing, unexpected, misshapen or not finite is named.

    The state of a schedule or a balance that the handle does not have, because the caller chose another, is left out.

    Args:
        handle: What goes on with it.
        folder: The ``spatial_forcing`` folder.
        record: What :func:`read` has found there; by default it is read.
        given: Arguments of ``wrap`` that the caller gave: among them, weight and schedule may be others than saved.
        options: The caller's options of components, by their saved names, of which paths may be others.

    Raises:
        CheckpointError: Something does not fit; the handle is what it was.
    """
    path, record = folder / PROJECTOR, record or read(folder)
    hub.warn_of_another_policy(folder, record)
    changed = hub.require_same(folder / CONFIG, record, handle.config, given, options or {})
    try:
        entries = _read(folder, _entries)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be read: {error}", "It may be cut off: restore or retrain.") from error
    if changed:
        mine = {key: value for key, value in state.of(handle).items() if key.startswith(_WEIGHTING)}
        others = {key: value for key, value in entries.items() if not key.startswith(_WEIGHTING)}
        entries = {**others, **{key: entries.get(key, value) for key, value in mine.items()}}
    try:
        state.check(handle, entries, _references(handle, entries))
        references = {key: entries.pop(key) for key in [*entries] if key.startswith(_HEALTH)}
        handle.load_state_dict(entries, strict=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", error.remedy) from error
    for observer in handle.observers:
        own = f"{observer.key}."
        observer.load_state({key[len(own) :]: item for key, item in references.items() if key.startswith(own)})


def _entries(folder: Path) -> dict[str, Tensor]:
    path = folder / PROJECTOR
    try:
        return load_file(path)
    except RuntimeError as error:  # safetensors maps the file through torch, whose error is no OSError
        gone = "No such file" in str(error)  # another process has replaced the folder meanwhile
        raise (FileNotFoundError if gone else OSError)(str(error)) from error


def _references(handle: Aligner, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The references of the health monitor in their shapes, ``(2, d)`` and ``(n,)``, from the entries ``(...)``."""
    found = {f"{_HEALTH}tokens.{site.key}": torch.empty(2, site.width(handle.adapter)) for site in handle.taps.at}
    saved = entries.get(f"{_HEALTH}projector", torch.empty(0))
    # A part of the projector may have been frozen when it was saved.
    return {**found, f"{_HEALTH}projector": sample_of(handle.parameters())[: saved.numel()]}
