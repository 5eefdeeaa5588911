"""A model's own files may not name other places: transformers would follow them, and some lead to code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sfkit.errors import CheckpointError, TrustError
from sfkit.utils.places import read_json

_CONFIG, _ADAPTER, _INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
#: Attention and experts that transformers fetches from the Hub as compiled code, where the name is one of a repository.
_KERNELS = ("attn_implementation", "experts_implementation")
_MOST = 2**26


def refuse_other_places(model: str, folder: Path | None, revision: str | None) -> None:
    """Look at the files of a model before transformers does.

    Raises:
        TrustError: One of them names another repository, or a file outside of the model's folder.
        CheckpointError: One of them is damaged.
    """
    config = _read(model, folder, revision, _CONFIG)
    for where, key, value in _named(config, _CONFIG):
        if key in ("backbone", "use_pretrained_backbone") and value:
            _refuse(model, where, value, "transformers would load the weights of another model")
        if key.strip("_").removesuffix("_internal") in _KERNELS and "/" in str(value):
            _refuse(model, where, value, "transformers would run compiled code of another repository")
    listed = config.get("configuration_files") or ()
    shards = _read(model, folder, revision, _INDEX).get("weight_map") or {}
    for name in (*listed, *(shards.values() if isinstance(shards, Mapping) else ())):
        if Path(str(name)).name != name:
            _refuse(model, _CONFIG if name in listed else _INDEX, name, "it lies outside of the model's folder")
    base = _read(model, folder, revision, _ADAPTER).get("base_model_name_or_path")
    if base:
        _refuse(model, _ADAPTER, base, "it is an adapter, and transformers would load the model that it names")


def _refuse(model: str, where: str, value: Any, why: str) -> None:
    raise TrustError(
        f"{model}: {where} names {value!r}: {why}.",
        "Take a model that is whole by itself; merge an adapter into its base, and save both with save_pretrained.",
    )


def _named(value: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{where}: {key}", str(key), item
            yield from _named(item, where)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, where)


def _read(model: str, folder: Path | None, revision: str | None, name: str) -> Mapping[str, Any]:
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
