"""Where a run starts from: a local checkpoint or a repository of the Hub, and its configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit.errors import CheckpointError, ConfigError
from sfkit.saving import hub
from sfkit.utils.places import read_json

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig

    from lerobot_policy_spatial_forcing.bases import Base
    from lerobot_policy_spatial_forcing.configuration_sf import SfConfig

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def fetch(source: str | Path, revision: str | None) -> Path:
    """The folder of a checkpoint: local as it is, or downloaded. Only the files that training needs are fetched.

    Raises:
        CheckpointError: It is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [_CONFIG, _WEIGHTS, *hub.LIMITS]
    try:
        hub.refuse_oversized(str(source), revision)
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"--policy.pretrained_path={source} is neither a local folder nor a repository that could be fetched: "
            f"{error}",
            "Name the folder that holds config.json and model.safetensors (of a LeRobot run: "
            "checkpoints/<step>/pretrained_model), or check the repository and the network.",
        ) from error


def adopt_base_config(config: SfConfig) -> None:
    """Take over the fields of the checkpoint's ``config.json``, except those that were set, by whatever means.

    So that nothing of the checkpoint need be repeated on the command line, as with LeRobot's ``--policy.path``.

    Raises:
        CheckpointError: The configuration is missing or unreadable.
        ConfigError: The checkpoint is of another policy.
    """
    assert config.pretrained_path is not None
    folder = fetch(config.pretrained_path, config.pretrained_revision)
    stored = _read_config(folder, config.base)
    for field in dataclasses.fields(stored):
        if field.name not in ("pretrained_path", "pretrained_revision", *config.given):
            setattr(config, field.name, getattr(stored, field.name))


def _read_config(folder: Path, base: Base) -> PreTrainedConfig:
    from lerobot.configs import PreTrainedConfig

    path = folder / _CONFIG
    try:
        found = read_json(path)
        kind = found.get("type") if isinstance(found, dict) else None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if kind != base.name:
        raise ConfigError(
            f"{folder} holds a policy of type {kind!r}, but the type asked for is {base.sf_type!r}.",
            f"Use --policy.type=sf_{kind}, if there is one, or another checkpoint.",
        )
    try:
        return PreTrainedConfig.from_pretrained(folder)
    except Exception as error:  # of draccus, or of what LeRobot checks in a configuration
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} could not be read: {error}", "Name the folder that LeRobot calls pretrained_model.")
