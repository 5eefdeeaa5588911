"""Locate published weights: a local file or folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sfkit.errors import CheckpointError
from sfkit_backbones.progress import progress


@dataclass(frozen=True)
class Source:
    """Published weights.

    Attributes:
        repo: Repository of the Hub.
        files: File names of the weights, in order of preference; also for a local folder.
        revision: Commit, tag or branch that sfkit is written for; None takes the newest.
        sha256: Known digests of the files at ``revision``, by file name.
        gate: What a user must accept before the Hub grants access; empty for an open repository.
    """

    repo: str
    files: tuple[str, ...] = ("model.safetensors",)
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    gate: str = ""


def locate(source: Source, where: str | None = None, revision: str | None = None, sha256: str | None = None) -> Path:
    """Local path of the weights; downloads them if they are missing (with a progress bar, and resumes).

    Args:
        source: The official weights.
        where: Replaces them: a local file, a local folder with such a file, or another repository of the Hub.
        revision: Replaces the official revision.
        sha256: Digest that the file must have. The known digest of an official file is always checked.

    Raises:
        CheckpointError: The weights are not found, access is not granted, or the digest differs.
    """
    local = None if where is None else _local(where, source)
    if local is not None:
        path = local
    else:
        official = where in (None, source.repo) and revision in (None, source.revision)
        path = _download(where or source.repo, revision or (source.revision if official else None), source)
        sha256 = sha256 or (source.sha256.get(path.name) if official else None)
    if sha256 is not None:
        _check_digest(path, sha256)
    return path


def _local(where: str, source: Source) -> Path | None:
    path = Path(where)
    try:
        path = path.expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, or "~name" of an unknown user
        is_file = is_folder = False
    if is_file:
        return path
    if is_folder:
        for name in source.files:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(
            f"The folder {path} holds no weights.", f"Expected {' or '.join(source.files)}; or give the file itself."
        )
    if where.startswith((".", "/", "~")) or path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"There is no file or folder {path}.", "Check the path of the weights.")
    return None


def _download(repo: str, revision: str | None, source: Source) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    by_hand = (
        f"download {' or '.join(source.files)} from https://huggingface.co/{repo} by hand and pass it: "
        'teacher=("<name>", {"weights": "/path/to/file"})'
    )
    unreachable: Exception | None = None
    for name in source.files:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except hub.GatedRepoError as error:
            raise CheckpointError(
                f"Access to {repo} has not been granted to you.",
                f"{source.gate or 'Accept its terms'} at https://huggingface.co/{repo}, log in with `hf auth login` as "
                f"the same user, and try again; or {by_hand}.",
            ) from error
        except hub.RevisionNotFoundError as error:
            raise CheckpointError(f"{repo} has no revision {revision!r}.", "Check the revision.") from error
        except hub.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"There is no repository {repo!r} on the Hub, or it is private.",
                "Check the name (owner/name); for a private one log in with `hf auth login`; or pass a local file.",
            ) from error
        except hub.HFValidationError as error:
            raise CheckpointError(
                f"{repo!r} is neither a local file or folder nor the name of a repository.", "Check the path."
            ) from error
        except hub.LocalEntryNotFoundError as error:  # offline: another of the names may be on this machine
            unreachable = error
        except hub.EntryNotFoundError:
            continue
        except Exception as error:  # of the Hub, or of whichever HTTP library stands behind its client
            unreachable = error
    if unreachable is None:
        raise CheckpointError(f"{repo} has no file {' or '.join(source.files)}.", f"Check it, or {by_hand}.")
    raise CheckpointError(
        f"{' or '.join(source.files)} of {repo} is not on this machine and could not be fetched: {unreachable}",
        f"Connect to the network (and unset HF_HUB_OFFLINE), or {by_hand}.",
    ) from unreachable


def _check_digest(path: Path, wanted: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(f"checking {path.name}", path.stat().st_size) as advance:
        while block := file.read(2**22):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() != wanted.lower():
        raise CheckpointError(
            f"{path} has sha256 {digest.hexdigest()}, expected {wanted}.",
            "It is damaged or another version: delete it and fetch it again, or give its own sha256.",
        )
