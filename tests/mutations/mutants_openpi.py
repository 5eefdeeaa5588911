"""Mutants of the openpi adapter, and of the watches that it stands on."""

from __future__ import annotations

from mutant import Mutant

TAP = "sfkit/alignment/tap.py"

OPENPI: tuple[Mutant, ...] = (
    Mutant(
        fault=4,
        what="a watch keeps what activation checkpointing runs again",
        file=TAP,
        old="        if self.armed:\n            value =",
        new="        if True:\n            value =",
        tests=("tests/alignment/test_watch.py::test_fault_04_a_watch_does_not_see_the_recomputation",),
    ),
)
