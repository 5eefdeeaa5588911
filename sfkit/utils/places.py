"""Local files and folders, and the digests that stand for them in what may be published."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What a folder's digest is made from: what decides which network it holds.
_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".py")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64}|unknown)")
_BLOCK = 2**22
#: A path that is no longer gives nobody away, and would be found in the middle of other words.
_SHORT = 3
_UNNAMED = "a local file or folder"
_ROOTED = re.compile(r"[/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]")


def is_local(text: str, *, bare: bool = False) -> bool:
    """Whether a text is a path of this machine, and no repository of the Hub.

    Args:
        text: What an option names.
        bare: Count a name without a folder too, if it exists. Such a name gives nothing away.
    """
    if _ROOTED.match(text):
        return True
    return (bare or "/" in text or "\\" in text) and _exists(text)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def digest_of(text: str) -> str | None:
    """SHA-256 of a file, or of a folder's models, configurations and code; None where there is nothing to read.

    A folder's is that of the lines ``"<sha256>  <name>"`` of its files, by name; folders inside it do not count.
    """
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return _of_file(path)
        files = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file())
        lines = "".join(f"{_of_file(item)}  {item.name}\n" for item in files)
    except (OSError, ValueError, RuntimeError):
        return None
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


def _of_file(path: Path) -> str:
    state = path.stat()
    return _hashed(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, size: int, changed: int) -> str:
    """Size and time are there for the cache: a checkpoint is saved many times, and the teacher's file is large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_digest(value: Any) -> bool:
    """Whether a saved option is the digest of what was named."""
    return isinstance(value, Mapping) and set(value) == {"sha256"}


def digest_text(digest: Mapping[str, str | None]) -> str:
    """A digest as it stands in a name."""
    return f"sha256:{digest['sha256'] or 'unknown'}"


def digest_of_text(value: Any) -> Any:
    """The digest that :func:`digest_text` has written; anything else as it is."""
    found = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else {"sha256": None if found[1] == "unknown" else found[1]}


def digest_in(value: Any) -> Any:
    """The first digest that a saved option is or holds; None if it holds none."""
    if is_digest(value):
        return value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next((found for item in inner if (found := digest_in(item)) is not None), None)


def without_places(value: Any, replaced: dict[str, str]) -> Any:
    """``value`` (JSON) with a digest in the place of each local path; notes in ``replaced`` what stands for what."""
    if isinstance(value, str) and is_local(value):
        digest = digest_of(value)
        where = Path(value).expanduser()
        for form in (value, str(where), str(where.absolute()), str(where.resolve())):
            if len(form) > _SHORT:
                replaced[form] = f"sha256:{digest}" if digest else _UNNAMED
        return {"sha256": digest}
    if isinstance(value, Mapping):
        return {key: without_places(item, replaced) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item, replaced) for item in value]
    return value


def scrubbed(text: str, replaced: Mapping[str, str]) -> str:
    """A text with the digests that :func:`without_places` has noted, and no other path that is the whole of it."""
    for path in sorted(replaced, key=len, reverse=True):
        text = text.replace(path, replaced[path])
    return _UNNAMED if is_local(text) else text


def read_json(path: Path, *, size: int = 2**20, depth: int = 64) -> Any:
    """The JSON of a file that may be hostile.

    Args:
        path: The file.
        size: The most bytes that it may have.
        depth: The most lists and mappings that may lie in one another.

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
        layer = [found]
        for _ in range(depth):
            layer = [inner for item in layer for inner in _inside(item)]
            if not layer:
                return found
    except RecursionError:
        pass
    raise ValueError(f"its lists and mappings are nested more than {depth} deep")


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
