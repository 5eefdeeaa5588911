"""Which options a file may set, by their types and marks. Without a mark the call alone sets a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from sfkit.config import ComponentSpec, Options
from sfkit.registry.component import Harmless, Reaching, SetBy, is_data, set_by
from sfkit.registry.registry import default_registry

#: Options of sfkit's own plugins that name something outside of the file that sets them.
REACHING = {
    ("pca", "file"),
    *((name, option) for name in ("vggt", "da3-base", "dust3r") for option in ("weights", "revision")),
    *(("hf", option) for option in ("model", "revision")),
}


class Everything(Options):
    count: int = 1
    share: float | None = None
    words: tuple[Literal["a", "b"], ...] = ()
    table: dict[int, float] = Field(default_factory=dict)
    harmless: Harmless[bool] = False
    inner: tuple[Harmless[str], ...] | None = None
    path: Reaching[str | None] = None
    switch: bool = False
    text: str | None = None
    by_word: dict[str, float] = Field(default_factory=dict)
    anything: Any = None
    place: Path | None = None


def test_fault_56_options_without_a_mark_are_the_callers() -> None:
    found = {name: set_by(field) for name, field in Everything.model_fields.items()}
    free = ("count", "share", "words", "table", "harmless", "inner")
    assert {name for name, by in found.items() if by is SetBy.ANY_FILE} == set(free)
    assert {name for name, by in found.items() if by is SetBy.LOCAL_FILE} == {"path"}
    assert found["switch"] is found["text"] is found["anything"] is found["place"] is SetBy.CALL


@pytest.mark.parametrize("annotation", [int, float, Literal[1, "a"], Sequence[int], Mapping[int, float], int | None])
def test_numbers_and_fixed_words_are_data(annotation: Any) -> None:
    assert is_data(annotation)


@pytest.mark.parametrize("annotation", [str, bool, bytes, Any, object, Path, tuple, dict[str, int], int | str])
def test_fault_56_what_may_hold_a_text_is_no_data(annotation: Any) -> None:
    assert not is_data(annotation)


def test_fault_56_ours_that_reach_outside_are_known() -> None:
    """A new option without a mark, or one that reaches outside, must be listed here."""
    by_option: dict[tuple[str, str], SetBy] = {}
    for entry in default_registry().entries:
        options = getattr(entry.load(), "Options", None) if entry.target is not None else None
        for name, field in options.model_fields.items() if options is not None else ():
            by_option[entry.name, name] = set_by(field)
    named = {entry.name for entry in default_registry().entries}
    reaching = {key for key, by in by_option.items() if by is SetBy.LOCAL_FILE}
    assert {key for key in REACHING if key[0] in named} <= reaching
    assert {option for _, option in reaching} <= {"file", "weights", "revision", "model", "path"}
    unmarked = {key for key, by in by_option.items() if by is SetBy.CALL}
    # A sum's terms are components, each of which is looked at by itself.
    assert unmarked - {("sum", "terms")} == ({("hf", "trust_remote_code")} if "hf" in named else set())


def test_a_specification_is_no_data() -> None:
    assert not is_data(ComponentSpec)
