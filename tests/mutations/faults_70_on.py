"""Mutants of faults 70 on: what is saved, and what is read back."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise

# fmt: off
SAVED = (
    Mutant(70, "state.check", drop_raise("CheckpointError"),
           "test_fault_70_damaged_state_is_refused_by_its_key[step -5]"),
)
