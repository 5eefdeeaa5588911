"""What is published of a checkpoint: its files with limits of size, its page, and the way back from the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfkit import __version__
from sfkit.config import SpatialForcingConfig
from sfkit.errors import CheckpointError
from sfkit.training.taps import site_of
from sfkit.utils.places import is_local

FOLDER = "spatial_forcing"
CONFIG, PROJECTOR, README = "config.json", "projector.safetensors", "README.md"
#: The files that are fetched and read, and their largest sizes in bytes.
LIMITS = {f"{FOLDER}/{CONFIG}": 2**20, f"{FOLDER}/{PROJECTOR}": 2**32, f"{FOLDER}/{README}": 2**20}


def download(repo: str, revision: str | None) -> Path:
    """A local folder with the files of sfkit in a repository.

    Raises:
        CheckpointError: It is no such repository, or a file is too large.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if is_local(repo):
        raise CheckpointError(f"{repo!r}: no such folder.", "Give the folder of save_pretrained, or a repository.")
    try:
        refuse_oversized(repo, revision)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(LIMITS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{repo!r}: no such folder, and no repository that could be fetched: {error}",
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
        refuse_size(f"{item.path} of the repository {repo!r}", item.path, getattr(item, "size", 0))


def refuse_size(what: str, name: str, size: int) -> None:
    """Check the size of a file before it is read.

    Raises:
        CheckpointError: It is larger than any that sfkit writes.
    """
    if size > LIMITS[name]:
        raise CheckpointError(
            f"{what} has {size} bytes, and sfkit reads {LIMITS[name]} at most.",
            "sfkit writes none as large: it is damaged or hostile.",
        )


def readme(config: SpatialForcingConfig, identities: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
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
        f"`spatial-forcing` and call `SpatialForcing.from_pretrained(policy, folder)`.\n\n"
        f"Teachers (no weights of theirs are in here):\n\n{sources}\n"
        + "".join(f"\n**Note:** {note}\n" for note in notes)
    )
