"""Local files and folders, and the digests that stand for them in what may be published."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

#: The files that decide which network a folder holds. Its digest is made from them.
_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".py")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64}|unknown)")
_BLOCK = 2**22
#: A path of this length gives nobody away, and stands in the middle of other words.
_SHORT = 3
_UNNAMED = "a local file or folder"
_ROOTED = re.compile(r"[/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]")


def is_local(text: str, *, bare: bool = False) -> bool:
    """Whether a text is a path of this machine, and no repository of the Hub.

    Args:
        text: What an option names.
        bare: Count a name without a folder too, if it exists. Such a name gives nothing away.
    """
    try:
        exists = (bare or "/" in text or "\\" in text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        exists = False
    return exists or _ROOTED.match(text) is not None


def digest_of(text: str) -> str | None:
    """SHA-256 of a file, or of a folder's models, configurations and code; None where there is nothing to read.

    A folder's is that of the lines ``"<sha256>  <name>"`` of its files, by name; folders inside it do not count.
    """
    path = Path(text).expanduser()
    try:
        if path.is_file():
            state = path.stat()
            return _hashed(path.resolve(), state.st_size, state.st_mtime_ns)
        files = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file())
        lines = "".join(f"{digest_of(str(item))}  {item.name}\n" for item in files)
    except (OSError, ValueError, RuntimeError):
        return None
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, size: int, changed: int) -> str:
    """Size and time are keys of the cache: a checkpoint is saved many times, and the teacher's file is large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_digest(value: object) -> TypeGuard[Mapping[str, str | None]]:
    """Whether a saved option is ``{"sha256": ...}``, the digest of a file or folder."""
    return isinstance(value, Mapping) and set(value) == {"sha256"}


def digest_of_text(value: object) -> object:
    """The digest in the text ``"sha256:<digest>"``, as it stands in a name; anything else as it is."""
    found = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else {"sha256": None if found[1] == "unknown" else found[1]}


def digest_in(value: object) -> Mapping[str, str | None] | None:
    """The first digest that a saved option is or holds; None if it holds none."""
    if is_digest(value):
        return value
    return next((found for item in _inside(value) if (found := digest_in(item)) is not None), None)


def without_places(value: object, replaced: dict[str, str]) -> object:
    """``value`` (JSON) with a digest in the place of each local path; ``replaced`` gets the text that replaces each."""
    if isinstance(value, str) and is_local(value):
        digest, path = digest_of(value), Path(value).expanduser()
        for form in (value, str(path), str(path.absolute()), str(path.resolve())):
            if len(form) > _SHORT:
                replaced[form] = f"sha256:{digest}" if digest else _UNNAMED
        return {"sha256": digest}
    if isinstance(value, Mapping):
        return {key: without_places(item, replaced) for key, item in value.items()}
    return [without_places(item, replaced) for item in value] if isinstance(value, (list, tuple)) else value


def scrubbed(text: str, replaced: Mapping[str, str]) -> str:
    """A text with the replacements that :func:`without_places` noted; one that is a path itself is replaced whole."""
    for path in sorted(replaced, key=len, reverse=True):
        text = text.replace(path, replaced[path])
    return _UNNAMED if is_local(text) else text


def read_json(path: Path, *, size: int = 2**20, depth: int = 64) -> Any:
    """The JSON of a file that may be hostile.

    Args:
        path: The file.
        size: Its largest size, in bytes.
        depth: How many levels of lists and mappings it may have, the values in the innermost included.

    Raises:
        OSError: It could not be read.
        ValueError: It is no JSON, or larger or deeper than that.
    """
    with path.open("rb") as file:
        text = file.read(size + 1)
    if len(text) > size:
        raise ValueError(f"it is larger than {size} bytes")
    try:
        found = json.loads(text)
        if _levels(found) <= depth:
            return found
    except RecursionError:
        pass
    raise ValueError(f"its lists and mappings are nested more than {depth} deep")


def _levels(value: object) -> int:
    return 1 + max(map(_levels, _inside(value)), default=0)


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
