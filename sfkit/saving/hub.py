"""What is published of a checkpoint: files with limits of size, page and record; and the way back from the Hub."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfkit import __version__
from sfkit.config import SpatialForcingConfig
from sfkit.errors import CheckpointError, SfkitWarning
from sfkit.registry.registry import CORE, default_registry
from sfkit.saving.trust import Given, lasting
from sfkit.training.taps import site_of
from sfkit.utils.places import ABSENT, differences, digest_of_parts, is_local

FOLDER = "spatial_forcing"
CONFIG, PROJECTOR, README = "config.json", "projector.safetensors", "README.md"
#: The files that are fetched and read, and their largest sizes in bytes.
LIMITS = {f"{FOLDER}/{CONFIG}": 2**20, f"{FOLDER}/{PROJECTOR}": 2**32, f"{FOLDER}/{README}": 2**20}
#: How the names of files with a policy's weights begin, in LeRobot, transformers, PEFT and diffusers.
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
#: What a resumed run may have otherwise, where its caller gives it.
_FREE = frozenset({"weight", "schedule"})


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


@dataclass(frozen=True)
class Record:
    """What ``config.json`` says.

    Attributes:
        config: The configuration, with all options, as it was published.
        versions: Of the distributions whose components are in it.
        policy_files: Size and digest of the policy's weights beside it.
    """

    config: SpatialForcingConfig
    versions: Mapping[str, object]
    policy_files: Mapping[str, object]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``wrap`` that the configuration stands for."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.config}


def require_same(
    file: Path, record: Record, config: SpatialForcingConfig, given: Collection[str], options: Given
) -> set[str]:
    """Compare a run with the saved one, and warn once of other versions; see :func:`sfkit.saving.checkpoint.load_into`.

    Returns:
        Which of weight and schedule are others.

    Raises:
        CheckpointError: Anything else is.
    """
    found = {path: values for path, *values in differences(lasting(record.config, options), lasting(config, {}))}
    # With an option that did not exist then, there is nothing to compare.
    added = [path for path, (then, _) in found.items() if then is ABSENT and path.split(".")[-2:-1] == ["options"]]
    changed = {path.partition(".")[0] for path in found.keys() - added}
    wrong = changed - _FREE.intersection(given)
    then, now = record.versions, versions(config)
    others = ", ".join(f"{name} {then.get(name)!r} (now {now[name]!r})" for name in now if then.get(name) != now[name])
    if wrong:
        listed = [f"{path} was {a!r} and is {b!r}" for path, (a, b) in found.items() if path.partition(".")[0] in wrong]
        raise CheckpointError(
            f"This run is not the one of {file}: {'; '.join(listed)}.{others and f' It was saved with {others}.'}",
            "Use the saved values, or begin anew without that folder. If another weight or schedule is meant, give it; "
            "if something else is, write it into that file too.",
        )
    if others or added:
        new = "".join(f" {path} is new, and {found[path][1]!r}." for path in added)
        warnings.warn(
            f"sfkit: {file} was saved with {others or 'other code'}.{new} Its options apply as they were; what the "
            "code makes of them may have changed. To be sure, install the versions that it was saved with.",
            SfkitWarning,
            stacklevel=4,
        )
    return changed


def versions(config: SpatialForcingConfig) -> dict[str, str]:
    """The version of each distribution that has a component in a run, also inside another one; and the core's."""
    named = re.findall(r'"name":"([^":]+)', config.model_dump_json())
    parts = [entry for entry in default_registry().entries if entry.name in named]
    return {**{entry.distribution: entry.version for entry in parts}, CORE: __version__}


def warn_of_another_policy(folder: Path, record: Record) -> None:
    """Warn where the policy's files beside ``folder`` are not those that it was saved with."""
    saved, now = record.policy_files, policy_files(folder.parent)
    # Of a repository, and where the policy lies elsewhere, there is nothing to compare.
    if folder.name != FOLDER or not (saved and now):
        return
    changed = [name for name, digest in saved.items() if now.get(name) != digest]
    if changed:
        warnings.warn(
            f"sfkit: {', '.join(sorted(changed))} in {folder.parent} changed after {FOLDER}/ was saved, so policy and "
            "projector may be of different steps: a save was killed halfway, or the policy was trained or saved "
            "without sfkit since. If that was not on purpose, resume from an earlier checkpoint.",
            SfkitWarning,
            stacklevel=4,
        )


def policy_files(directory: Path) -> dict[str, str]:
    """Size and digest of the policy's weights in a folder, by the name of the file; ``{}`` where there are none.

    Files of a trainer (its optimizer, its processors), which are written later, are not among them.
    """
    found = {}
    for path in sorted(directory.glob("*")):
        if path.suffix in (".safetensors", ".bin") and path.name.startswith(_WEIGHTS):
            with contextlib.suppress(OSError):  # a folder, or replaced by another process just now
                found[path.name] = f"{path.stat().st_size}:{digest_of_parts(path)}"
    return found
