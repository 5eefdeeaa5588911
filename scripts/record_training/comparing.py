"""Finds where two records differ first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What :func:`compare` found; ``same`` where every case of the old record is in the new one to the last bit."""

    same: bool
    text: str


def load(file: Path) -> dict[str, Any]:
    """Read a record."""
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Report:
    """Compare each case of two records, by position of parameters."""
    if old["conditions"] != new["conditions"]:
        return Report(False, f"The records cannot be compared: {old['conditions']} and {new['conditions']}.")
    lines, same, names = [], True, list(old["cases"])
    for name in names:
        found = _difference(old["cases"][name], new["cases"].get(name))
        if found:
            same = False
            lines.append(f"{name}: {found}")
    equal = len(names) - len(lines)
    added = [name for name in new["cases"] if name not in old["cases"]]
    if added:
        lines.append(f"not compared, as the old record lacks them: {', '.join(added)}")
    renamed = _renamed(old, new)
    if renamed:
        lines.append(f"parameters with other names, compared by position: {len(renamed)}, such as {renamed[0]}")
    steps = old["conditions"]["steps"]
    lines.append(f"{equal} of {len(names)} cases are equal to the last bit over {steps} steps.")
    return Report(same and bool(names), "\n".join(lines))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> str:
    if new is None:
        return "the new record lacks it"
    for which, record in (("old", old), ("new", new)):
        if "error" in record:
            return f"it failed in the {which} checkout: {record['error']}"
    return next(_differences(old, new), "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Each quantity that differs, in the order in which training computes them."""
    names = old["names"], new["names"]
    yield from _tensors("before the first step", "parameter", old["initial"], new["initial"], names)
    for step, (one, other) in enumerate(zip(old["steps"], new["steps"], strict=True)):
        for key in one:
            if key != "gradients" and not _same(one[key], other[key]):
                yield f"step {step}, {key}: {_change(one[key], other[key])}"
        yield from _tensors(f"step {step}", "gradient of", one["gradients"], other["gradients"], names)
    yield from _tensors("after the last step", "parameter", old["final"], new["final"], names)
    buffers = [f"buffer {index}" for index in range(len(old["buffers"]))]
    yield from _tensors("after the last step", "", old["buffers"], new["buffers"], (buffers, buffers))
    if old["random numbers"] != new["random numbers"]:
        yield "after the last step, the state of torch's random numbers"


def _tensors(when: str, what: str, old: list[Any], new: list[Any], names: tuple[list[str], list[str]]) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{when}, number of {what or 'buffer'}s: {len(old)} and {len(new)}"
        return
    for position, (one, other) in enumerate(zip(old, new, strict=True)):
        # A norm may be NaN, which differs from itself; the digest says whether tensors are equal.
        if one == other or (one and other and one[0] == other[0]):
            continue
        name = " / ".join(dict.fromkeys(side[position] for side in names))
        amount = "one side has none" if one is None or other is None else f"norm {_change(one[1], other[1])}"
        yield f"{when}, {f'{what} ' if what else ''}{name} (position {position}): {amount}"


def _same(one: float | None, other: float | None) -> bool:
    both = one is not None and other is not None
    return one == other or (both and math.isnan(one) and math.isnan(other))  # type: ignore[arg-type]


def _change(one: float | None, other: float | None) -> str:
    if one is None or other is None:
        return f"{one!r} and {other!r}"
    if _same(one, other):
        return f"{one!r} in both"
    return f"{one!r} and {other!r}, a difference of {abs(one - other) / max(abs(one), abs(other)):.1e}"


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = {}
    for name, record in old["cases"].items():
        other = new["cases"].get(name, {})
        for one, two in zip(record.get("names", ()), other.get("names", ()), strict=False):
            if one != two:
                found[f"{one} -> {two}"] = None
    return list(found)
