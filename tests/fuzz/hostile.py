"""What a stranger may write: values of wrong types and sizes, and files that are damaged or made to do harm."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

#: Stand for JSON that ``json.dumps`` would not write; see :func:`written`.
RAW = {
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "@digits": "9" * 5_000,
    "@infinite": "1e999",
    "@twice": '{"a": 1, "a": 2}',
    "@open": '{"a": [1,',
    "@comma": "[1,]",
}
NUMBERS: tuple[object, ...] = (
    *(0, 1, 2, 3, 7, 64, -1, -2, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64), 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, -0.5, 1.5, 1e-300, 5e-324, 1e12, -1e12, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(True, False),
)
TEXTS = (
    *("", " ", "0", "1", "-1", "nan", "inf", "1e400", "9" * 5_000, "x" * 100_000, "\ud800", "\x00", "a\nb", "[red]"),
    *("..", "../..", "/", "/etc/passwd", "~", "~nobody-of-this-name/x", "a/b", "a/b/c", "C:\\x", "{0}", "é", "٣"),
    *("none", "null", "true", "name", "options", "encoder", "balance", "balance:", "balance:0.1", "balance:nan"),
    *("balance:-1", "cosine", "cosine:10", "stop:5", "mlp", "geometry", "geometry:x", "mean", "sum", "m", "mm", "cpu"),
    "a" * 300 + "/" + "b" * 300,
)  # fmt: skip


def deep(levels: int) -> list[Any]:
    """Lists within lists."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


leaves = st.one_of(
    st.none(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
values = st.one_of(
    leaves,
    leaves,
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.just(70).map(deep),
)
#: In a text of JSON only.
raw_values = values | st.sampled_from(sorted(RAW))
#: What Python code may pass beside that.
python_values = values | st.one_of(
    st.sampled_from((b"bytes", {1, 2}, {1: 2}, (), ("mlp", {}), ("mlp", None), ("a", "b"), object, len, range(3), 1j)),
    st.tuples(st.sampled_from(TEXTS), values),
    st.tuples(values, st.integers(0, 2), values),
    st.just(2_000).map(deep),
    st.sampled_from((torch.zeros(2), torch.zeros(()), torch.full((), torch.nan))),
)  # fmt: skip


def _paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [path]
    if isinstance(value, Mapping):
        items: Sequence[tuple[object, object]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, (list, tuple)) and len(path) < 20 else []
    for key, item in items:
        found += _paths(item, (*path, key))
    return found


def _changed(value: Any, path: tuple[object, ...], change: Callable[[Any], Any]) -> Any:
    """``value`` with what lies at ``path`` changed; a tuple on the way becomes a list."""
    if not path:
        return change(value)
    copied = dict(value) if isinstance(value, Mapping) else list(value)
    copied[path[0]] = _changed(copied[path[0]], path[1:], change)  # type: ignore[index]
    return copied


@st.composite
def mutated(draw: st.DrawFn, good: st.SearchStrategy[Any], hostile: st.SearchStrategy[Any] = raw_values) -> Any:
    """A document that is right but for up to three places."""
    value = copy.copy(draw(good))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(_paths(value)))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "drop", "add", "list", "mapping")))
        other = draw(hostile)
        if kind == "add":
            key = draw(st.sampled_from(TEXTS))
            value = _changed(value, path, lambda old: {**old, key: other} if isinstance(old, dict) else [old, other])  # noqa: B023
        elif kind == "drop" and path:
            value = _changed(value, path[:-1], lambda old: _without(old, path[-1]))  # noqa: B023
        else:
            wrap = {"list": lambda old: [old], "mapping": lambda old: {"a": old}}.get(kind, lambda _: other)  # noqa: B023
            value = _changed(value, path, wrap)
    return value


def _without(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if name != key}
    return [item for index, item in enumerate(value) if index != key]


def written(value: object) -> bytes:
    """JSON as any program may write it: NaN, numbers of 5,000 digits and halves of surrogate pairs included."""
    text = json.dumps(value, default=str)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


@dataclass(frozen=True)
class Place:
    """What lies where a file should be: its bytes, or ``"folder"``, ``"nothing"`` or ``"loop"``."""

    content: bytes | str

    def make(self, path: Path) -> None:
        """Put it at a path."""
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif self.content == "folder":
            path.mkdir()
        elif self.content == "loop":
            path.symlink_to(path)

    def __repr__(self) -> str:
        return f"Place({self.content[:300]!r})"


def damaged(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that were cut, overwritten, or have something before or behind them."""

    @st.composite
    def of(draw: st.DrawFn) -> bytes:
        found = draw(content)
        kind = draw(st.sampled_from(("cut", "flip", "flip", "before", "behind", "mark", "wide")))
        if kind == "cut":
            return found[: draw(st.integers(0, max(len(found) - 1, 0)))]
        if kind in ("before", "behind"):
            junk = draw(st.binary(max_size=8))
            return junk + found if kind == "before" else found + junk
        if kind == "mark":
            return b"\xef\xbb\xbf" + found
        if kind == "wide":
            return found.decode(errors="replace").encode("utf-16", errors="replace")
        parts = bytearray(found)
        for _ in range(draw(st.integers(1, 4)) if parts else 0):
            parts[draw(st.integers(0, len(parts) - 1))] = draw(st.integers(0, 255))
        return bytes(parts)

    return of()


def places(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Place]:
    """A file with such bytes, mostly; or with none, with junk, or no file."""
    odd = st.sampled_from(
        (b"", b"\x00" * 64, b"null", b"[]", b"{}", b"1", b'"a"', b"\xff\xfe", "folder", "nothing", "loop")
    )
    return st.one_of(content, content, content, damaged(content), damaged(content), st.binary(max_size=64), odd).map(
        Place
    )


def documents(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Place]:
    """A file of JSON."""
    return places(mutated(good).map(written))


# ------------------------------------------------------------------------------------------------- files of tensors

_DTYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "C64",
    "X",
    "",
    3,
    None,
)


def safetensors_bytes(header: object, data: bytes) -> bytes:
    """A file with this header, whatever it says."""
    text = written(header)
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def tensor_files(draw: st.DrawFn, good: bytes) -> bytes:
    """A safetensors file whose header is changed: of entries, their dtypes, shapes, offsets, or anything."""
    (size,) = struct.unpack("<Q", good[:8])
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names))
        entry = dict(header.get(name) or {"dtype": "F32", "shape": [], "data_offsets": [0, 4]})
        kind = draw(st.sampled_from(("dtype", "shape", "data_offsets", "values", "drop", "rename")))
        if kind == "values":
            begin, end = (entry.get("data_offsets") or [0, 4])[:2]
            fill = draw(st.sampled_from((b"\xff", b"\x00", b"\x7f", b"\x80")))
            data = data[:begin] + fill * (end - begin) + data[end:]
        elif kind == "drop":
            header.pop(name, None)
        elif kind == "rename":
            header[draw(st.sampled_from(TEXTS))] = header.pop(name, entry)
        elif kind == "dtype":
            header[name] = {**entry, "dtype": draw(st.sampled_from(_DTYPES))}
        else:
            listed = st.lists(st.sampled_from(NUMBERS) | st.integers(0, 64), max_size=4)
            header[name] = {**entry, kind: draw(listed | st.none())}
    if draw(st.booleans()):
        header = draw(mutated(st.just(header)))
    return safetensors_bytes(header, data)


def saved(value: object, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def pickles(good: Mapping[str, torch.Tensor]) -> st.SearchStrategy[bytes]:
    """Files of ``torch.save``, in both of its formats, and what a stranger may call so."""
    first = next(iter(good))
    odd: list[object] = [
        good, {"model": good}, {"model": None}, {"model": [1]}, [], None, 3, "text", {}, {1: torch.zeros(2)},
        {first: 1},
        {**good, first: torch.zeros(1).to_sparse()}, {**good, first: torch.zeros(2, dtype=torch.complex64)},
        {**good, first: torch.full_like(good[first], torch.nan)}, {**good, first: good[first].to(torch.float8_e5m2)},
        {**good, first: good[first].long()}, {**good, (1, 2): torch.zeros(2)}, {**good, first: good[first].to("meta")},
        {**good, first: torch.quantize_per_tensor(good[first], 0.1, 0, torch.qint8)}, deep(100), {"a": {"b": good}},
    ]  # fmt: skip
    files = [saved(value) for value in odd]
    files += [saved(value, _use_new_zipfile_serialization=False) for value in odd]
    opcodes = st.lists(
        st.sampled_from(
            [bytes([code]) for code in b"(.0]})}aeubstR\x85\x86\x87h\x94cosq\x00KJMI1\nNXVT\x80\x02\x04ilid"]
        ),
        max_size=30,
    )
    made = st.one_of(
        st.sampled_from(files), damaged(st.sampled_from(files)), opcodes.map(lambda each: b"\x80\x02" + b"".join(each))
    )
    return st.one_of(made, made, st.binary(max_size=40), st.binary(max_size=40).map(lambda each: b"PK\x03\x04" + each))
