"""Mutants of faults 67 to 69: what is saved, and what is read back."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_call, drop_raise

# fmt: off
SAVED = (
    Mutant(67, "state.check", drop_raise("CheckpointError"),
           "test_fault_67_damaged_state_is_refused_by_its_key[step -5]"),
    Mutant(68, "_install", drop_call("copytree"),
           "test_fault_68_a_users_own_files_survive_each_save", ends_in="FileNotFoundError"),
    Mutant(69, "load_into", drop_call("warn_of_another_policy"),
           "test_fault_69_a_policy_saved_alone_since_then_is_named", ends_in="IndexError"),
)
