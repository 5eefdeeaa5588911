"""The short form of ``make fuzz``: always the same hostile inputs, to every parser that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import hostile
from hypothesis import strategies as st
from installed import installed_parsers
from running import Parser, fuzz

#: Inputs of a parser of share 1.
_INPUTS = 25
#: Without what takes a second for each input.
PARSERS = [parser for parser in installed_parsers() if parser.share > 0.01]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_what_comes_out_is_a_value_or_an_error_of_sfkit(parser: Parser) -> None:
    tally = fuzz(parser, round(_INPUTS * parser.share))
    assert tally.faults == {}
    assert tally.refused.total() > tally.inputs / 4, "the inputs should be worth refusing"


def test_another_error_is_noticed() -> None:
    tally = fuzz(Parser("a careless parser", hostile.values, lambda value, folder: value["a"]), 50)
    assert tally.fault_count > 40
    assert any(kind.startswith("TypeError in <lambda>") for kind in tally.faults)


def test_the_inputs_are_always_the_same() -> None:
    heard: list[str] = []
    listener = Parser("a listener", st.lists(hostile.leaves), lambda value, folder: heard.append(repr(value)))
    fuzz(listener, 30)
    fuzz(listener, 30)
    assert heard[:30] == heard[30:]
    assert len(set(heard)) > 20
