"""Local files and folders, and the digests that replace them in published files."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sfkit.config import beyond_bounds

#: The files that decide which network a folder holds. Its digest is made from them.
_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".py")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64}|unknown)")
_BLOCK = 2**22
#: Of a large file, so many parts of so many bytes are read; up to the first size a file is read whole.
_WHOLE, _PARTS, _PART = 2**26, 1024, 4096
#: A path of this length gives nobody away, and stands in the middle of other words.
_SHORT = 3
#: In :func:`differences`, in the place of a value that is not there.
ABSENT = type("Absent", (), {"__repr__": lambda _: "absent"})()
_UNNAMED = "a local file or folder"
_ROOTED = re.compile(r"[/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]")


def is_local(text: str, *, bare: bool = False) -> bool:
    """Whether a text is a path of this machine, and no repository of the Hub.

    Args:
        text: The value of an option.
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
    path = _expanded(text)
    try:
        if path.is_file():
            return _file_digest(path)
        files = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file())
        lines = "".join(f"{_file_digest(item)}  {item.name}\n" for item in files)
    except (OSError, ValueError):
        return None
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" of an unknown user
        return Path(text)


def _file_digest(path: Path) -> str:
    state = path.stat()
    return _hashed(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, size: int, changed: int) -> str:
    """Size and time are keys of the cache: a checkpoint is saved many times, and the teacher's file is large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of_parts(path: Path) -> str:
    """SHA-256 of a file; of one above 64 MiB, of 1024 blocks of 4 KiB at even distances, both ends included.

    A training step changes nearly all values, so that blocks suffice: 8 ms for 0.5 GB in memory, against 0.4 s.
    """
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        for number in range(_PARTS if size > _WHOLE else 0):
            file.seek((size - _PART) * number // (_PARTS - 1))
            digest.update(file.read(_PART))
    return digest.hexdigest()


def digest_in(value: object) -> str | None:
    """The first digest that a saved option is or holds: ``{"sha256": digest}``, or ``"sha256:digest"`` as in a name.

    ``"unknown"`` stands for the digest of a path where there was nothing to read. None: the option holds no digest.
    """
    if isinstance(value, Mapping) and set(value) == {"sha256"}:
        return str(value["sha256"] or "unknown")
    if isinstance(value, str) and (text := _DIGEST.fullmatch(value)):
        return text[1]
    return next((found for item in _inside(value) if (found := digest_in(item))), None)


def without_places(value: object, replaced: dict[str, str]) -> object:
    """``value`` (JSON) with a digest in the place of each local path; ``replaced`` gets the text that replaces each."""
    if isinstance(value, str) and is_local(value):
        digest, path = digest_of(value), _expanded(value)
        for form in (value, str(path), str(path.absolute()), str(path.resolve())):
            if len(form) > _SHORT:
                replaced[form] = f"sha256:{digest}" if digest else _UNNAMED
        return {"sha256": digest}
    if isinstance(value, Mapping):
        return {key: without_places(item, replaced) for key, item in value.items()}
    return [without_places(item, replaced) for item in value] if isinstance(value, (list, tuple)) else value


def scrubbed(text: str, replaced: Mapping[str, str]) -> str:
    """A text with the replacements that :func:`without_places` noted; one that is a path itself is replaced whole."""
    # Longest first: one path may be the beginning of another.
    for path in sorted(replaced, key=len, reverse=True):
        text = text.replace(path, replaced[path])
    return _UNNAMED if is_local(text) else text


def differences(saved: object, now: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Path and both values of each difference between two JSON values; :data:`ABSENT` where there is no value.

    Of two things with other names, the names alone differ. A digest is the same in both forms of :func:`digest_in`.
    """
    first, second = _by_key(saved), _by_key(now)
    if first is None or second is None:
        if (digest_in(saved) or saved) != (digest_in(now) or now):
            yield path, saved, now
        return
    for key in {**first, **second} if first.get("name") == second.get("name") else ("name",):
        yield from differences(first.get(key, ABSENT), second.get(key, ABSENT), f"{path}.{key}".lstrip("."))


def _by_key(value: object) -> Mapping[object, object] | None:
    """A mapping, or a list by its indices; None for a single value or a digest."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return value if isinstance(value, Mapping) and set(value) != {"sha256"} else None


def read_json(path: Path, *, size: int = 2**20, depth: int = 64) -> Any:
    """The JSON of a file that may be hostile.

    Args:
        path: The file.
        size: Its largest size, in bytes.
        depth: How many levels of lists and mappings it may have, the values in the innermost included.

    Raises:
        OSError: It could not be read.
        ValueError: As for :func:`parse_json`.
    """
    with path.open("rb") as file:
        text = file.read(size + 1)
    return parse_json(text, size=size, depth=depth)


def parse_json(text: str | bytes, *, size: int = 2**20, depth: int = 64) -> Any:
    """JSON that may be hostile; see :func:`read_json`.

    Raises:
        ValueError: It is no JSON, larger or deeper than that, or has a number that is not finite, or one key twice.
    """
    if len(text) > size:
        raise ValueError(f"it is larger than {size} bytes")
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite)
    except RecursionError:  # deeper than the interpreter's own limit
        raise ValueError(f"its lists and mappings are nested more than {depth} deep") from None
    if fault := beyond_bounds(found, depth=depth):
        raise ValueError(fault)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it has one key twice: {', '.join(sorted(key for key, _ in pairs))[:200]}")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
