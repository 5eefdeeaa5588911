"""Refuse models whose files point outside their folder: transformers follows such references, and some run code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sfkit.errors import CheckpointError, TrustError
from sfkit.utils.places import read_json

_CONFIG, _ADAPTER, _INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
#: Settings whose value may name a repository of compiled kernels, which transformers downloads and runs.
_KERNELS = ("attn_implementation", "experts_implementation")
#: Size limit of these files in bytes.
_MOST = 2**26


def refuse_other_places(model: str, folder: Path | None, revision: str | None) -> None:
    """Check the files of a model before transformers reads them.

    Raises:
        TrustError: A file names another repository, or a file outside of the model's folder.
        CheckpointError: A file is damaged.
    """
    config = _read(model, folder, revision, _CONFIG)
    for where, key, value in _named(config, _CONFIG):
        if key in ("backbone", "use_pretrained_backbone") and value:
            _refuse(model, where, value, "transformers would load the weights of another model")
        if key.strip("_").removesuffix("_internal") in _KERNELS and "/" in str(value):
            _refuse(model, where, value, "transformers would run compiled code of another repository")
    listed = config.get("configuration_files")
    files = list(listed) if isinstance(listed, Iterable) else []
    shards = _read(model, folder, revision, _INDEX).get("weight_map")
    for name in (*files, *(shards.values() if isinstance(shards, Mapping) else ())):
        if Path(str(name)).name != name:
            _refuse(model, _CONFIG if name in files else _INDEX, name, "it lies outside of the model's folder")
    base = _read(model, folder, revision, _ADAPTER).get("base_model_name_or_path")
    if base:
        _refuse(model, _ADAPTER, base, "it is an adapter, and transformers would load the model that it names")


def _refuse(model: str, where: str, value: object, why: str) -> None:
    raise TrustError(
        f"{model}: {where} names {value!r}: {why}.",
        "Take a model that is whole by itself; merge an adapter into its base, and save both with save_pretrained.",
    )


def _named(value: object, where: str) -> Iterator[tuple[str, str, object]]:
    """Every key of nested JSON with its value: where it stands, the key, the value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{where}: {key}", str(key), item
            yield from _named(item, where)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, where)


def _read(model: str, folder: Path | None, revision: str | None, name: str) -> Mapping[str, object]:
    path = folder / name if folder is not None else _fetched(model, revision, name)
    if path is None or not path.is_file():
        return {}
    try:
        found = read_json(path, size=_MOST)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The configuration of {model} could not be read: {path.name}: {error}",
            "A file may be truncated or damaged: fetch it again.",
        ) from error
    return found if isinstance(found, Mapping) else {}


def _fetched(model: str, revision: str | None, name: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        model,
        name,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
