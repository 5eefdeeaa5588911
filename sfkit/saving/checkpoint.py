"""The files beside a policy's own: ``spatial_forcing/config.json`` and ``spatial_forcing/projector.safetensors``.

Safetensors only, written to a temporary folder and renamed, and checked key by key when read. A teacher's weights are
never written: its identity and license are recorded.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfkit import __version__
from sfkit.config import SpatialForcingConfig, balance_ratio
from sfkit.errors import CheckpointError, ConfigError
from sfkit.health.figures import sample_of
from sfkit.saving.trust import Origin, Published
from sfkit.teachers.base import Teacher, license_note
from sfkit.training import state
from sfkit.training.step import Aligner
from sfkit.training.taps import site_of
from sfkit.utils.places import read_json

FOLDER = "spatial_forcing"
_CONFIG, _PROJECTOR, _README = "config.json", "projector.safetensors", "README.md"
#: The files that are fetched and read, and their largest sizes in bytes.
LIMITS = {f"{FOLDER}/{_CONFIG}": 2**20, f"{FOLDER}/{_PROJECTOR}": 2**32, f"{FOLDER}/{_README}": 2**20}
_FORMAT = "sfkit.checkpoint/3"
#: Prefixes of entries that depend on weight and schedule, and of the health monitor's.
_WEIGHTING = ("schedule.", "balance.", "measured")
_HEALTH = "health."
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
        "config": public.config.model_dump(mode="json"),
        "teachers": identities,
    }
    _tidy(directory)
    # Beside the target: a rename is atomic within one file system alone.
    work = Path(tempfile.mkdtemp(prefix=_prefix(), dir=directory))
    try:
        # mkdtemp's own folder is private to the user; the one inside has the usual permissions.
        fresh = work / "fresh"
        fresh.mkdir()
        save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, fresh / _PROJECTOR)
        (fresh / _CONFIG).write_text(json.dumps(record, indent=2) + "\n")
        (fresh / _README).write_text(_readme(public.config, identities, notes))
        if (directory / FOLDER).exists():
            os.replace(directory / FOLDER, work / _EARLIER)  # noqa: PTH105 - folders are replaced by renaming
        os.replace(fresh, directory / FOLDER)  # noqa: PTH105
    finally:
        # After an exception between the two renames, the earlier folder goes back before its parent is removed.
        _recover(directory)
        shutil.rmtree(work, ignore_errors=True)


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


def _readme(config: SpatialForcingConfig, identities: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
    """The page of the published folder."""
    pairs = "\n".join(
        f"- {site_of(pair.student_layer)} of the policy with layer {pair.teacher_layer} of teacher "
        f"`{pair.teacher.name}`"
        for pair in config.pairs
    )
    sources = "\n".join(
        f"- `{identity['name']}`" + "".join(f", {key} {value}" for key, value in identity.items() if key != "name")
        for identity in identities
    )
    return (
        "# Spatial forcing\n\n"
        f"This policy was trained with an alignment loss of weight {config.weight} by sfkit {__version__}:\n\n"
        f"{pairs}\n\n"
        "The policy beside this folder is complete without it and runs without sfkit. To go on training, install "
        f"`sfkit` and call `SpatialForcing.from_pretrained(policy, folder)`.\n\n"
        f"Teachers (no weights of theirs are in here):\n\n{sources}\n"
        + "".join(f"\n**Note:** {note}\n" for note in notes)
    )


def _prefix() -> str:
    """The beginning of the names of this process's temporary folders."""
    return f".{FOLDER}-{platform.node()}-{os.getpid()}-"


def _tidy(directory: Path) -> None:
    """Remove what killed processes of this machine left behind while they saved."""
    _recover(directory)
    # Process ids mean nothing on another machine, whose folders on a shared disk stay.
    for work in directory.glob(f".{FOLDER}-{glob.escape(platform.node())}-*"):
        pid = work.name.rsplit("-", 2)[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(work, ignore_errors=True)


def _recover(directory: Path) -> None:
    """Take the earlier folder back, where a process was killed after it moved it away."""
    for earlier in sorted(directory.glob(f".{FOLDER}-*/{_EARLIER}")):
        if not (directory / FOLDER).exists():
            os.replace(earlier, directory / FOLDER)  # noqa: PTH105 - folders are replaced by renaming


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
    local = Path(source)
    if local.is_dir():
        _recover(local)
    root = local if local.exists() else _download(str(source), revision)
    for folder in (root / FOLDER, root):
        if (folder / _CONFIG).is_file() and (folder / _PROJECTOR).is_file():
            break
    else:
        raise CheckpointError(f"{source} has no {FOLDER}/ folder.", "Save the wrapped policy with save_pretrained.")
    for name in LIMITS:
        path = folder / Path(name).name
        if path.is_file():
            _refuse_size(str(path), name, path.stat().st_size)
    return folder


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        refuse_oversized(repo, revision)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(LIMITS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{repo!r} is neither a local checkpoint nor a repository that could be fetched: {error}",
            "Check the name and the network, or pass a local folder.",
        ) from error


def refuse_oversized(repo: str, revision: str | None) -> None:
    """Ask the Hub for the sizes of the files of sfkit in a repository, before any of them is fetched.

    Raises:
        CheckpointError: One is larger than any that sfkit writes.
        HfHubHTTPError: There is no such repository, or no access to it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = HfApi().get_paths_info(repo, list(LIMITS), revision=revision)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # no connection, in the words of whichever HTTP library: nothing will be fetched
        return
    for item in found:
        _refuse_size(f"{item.path} of the repository {repo!r}", item.path, getattr(item, "size", 0))


def _refuse_size(what: str, name: str, size: int) -> None:
    if size > LIMITS[name]:
        raise CheckpointError(
            f"{what} has {size} bytes, and sfkit reads {LIMITS[name]} at most.",
            "sfkit writes none as large: it is damaged or hostile.",
        )


def origin_of(source: str | Path, folder: Path) -> Origin:
    """Where the configuration of a checkpoint was read, for :func:`sfkit.saving.trust.admit`."""
    local = Path(source).exists()
    file = str(folder / _CONFIG) if local else f"{FOLDER}/{_CONFIG} of the repository {str(source)!r}"
    return Origin(file, local, lambda name, options: f"add options={{{name!r}: {dict(options)!r}}} to the call")


def read_config(folder: Path) -> SpatialForcingConfig:
    """Read the saved configuration.

    Raises:
        CheckpointError: It is damaged, or was written by a version with another format.
    """
    try:
        record = read_json(folder / _CONFIG, size=LIMITS[f"{FOLDER}/{_CONFIG}"])
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        if record.get("format") != _FORMAT:
            raise CheckpointError(
                f"{folder / _CONFIG} has format {record.get('format')!r}, expected {_FORMAT!r}.",
                f"It was written by sfkit {record.get('sfkit_version', 'of unknown version')}: use that version.",
            )
        return SpatialForcingConfig.parse(str(folder / _CONFIG), record["config"])
    except (OSError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{folder / _CONFIG} could not be read: {error}") from error


def wrap_arguments(config: SpatialForcingConfig) -> dict[str, Any]:
    """The arguments of ``wrap`` that a configuration stands for."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config}


def load_into(handle: Aligner, folder: Path) -> None:
    """Load projector and state, strictly: each entry that is missing, unexpected, misshapen or not finite is named.

    The state of a schedule or a balance that the handle does not have, because the caller chose another, is left out.

    Raises:
        CheckpointError: Something does not fit; the handle is what it was.
    """
    path, config = folder / _PROJECTOR, read_config(folder)
    try:
        entries = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be read: {error}", "It may be truncated; restore or retrain."
        ) from error
    if _weighting(config) != _weighting(handle.config):
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


def _weighting(config: SpatialForcingConfig) -> tuple[object, bool]:
    """What decides which entries :data:`_WEIGHTING` there are."""
    return config.schedule, balance_ratio(config.weight) is None


def _references(handle: Aligner, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The references of the health monitor in their shapes, ``(2, d)`` and ``(n,)``, from the entries ``(...)``."""
    found = {f"{_HEALTH}tokens.{site.key}": torch.empty(2, site.width(handle.adapter)) for site in handle.taps.at}
    saved = entries.get(f"{_HEALTH}projector", torch.empty(0))
    # A part of the projector may have been frozen when it was saved.
    return {**found, f"{_HEALTH}projector": sample_of(handle.parameters())[: saved.numel()]}
