"""Mutants of faults 70 on: what is saved, and what is read back."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_call, drop_raise

# fmt: off
SAVED = (
    Mutant(70, "state.check", drop_raise("CheckpointError"),
           "test_fault_70_damaged_state_is_refused_by_its_key[step -5]"),
    Mutant(71, "_install", drop_call("copytree"),
           "test_fault_71_a_users_own_files_survive_each_save", ends_in="FileNotFoundError"),
    Mutant(72, "load_into", drop_call("_warn_of_another_policy"),
           "test_fault_72_a_policy_saved_alone_since_then_is_named", ends_in="IndexError"),
)
