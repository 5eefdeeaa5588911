"""Mutants of faults 67 to 69 and 75 to 77: what is saved, what is read back, and whether it is the same run."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_call, drop_raise, replace_call

# fmt: off
SAVED = (
    Mutant(67, "state.check", drop_raise("CheckpointError"),
           "test_fault_67_damaged_state_is_refused_by_its_key[step -5]"),
    Mutant(68, "_install", drop_call("copytree"),
           "test_fault_68_a_users_own_files_survive_each_save", ends_in="FileNotFoundError"),
    Mutant(69, "load_into", drop_call("warn_of_another_policy"),
           "test_fault_69_a_policy_saved_alone_since_then_is_named", ends_in="IndexError"),
    Mutant(75, "require_same", drop_raise("CheckpointError"),
           "test_fault_75_another_option_is_an_error_with_both_values",
           "test_fault_75_an_argument_given_again_must_be_the_same",
           "test_fault_75_options_inside_of_others_are_compared",
           "test_fault_75_a_run_with_other_options_is_not_resumed"),
    Mutant(76, "Configurable.spec", replace_call("model_dump", "self.options.model_dump(exclude_defaults=True)"),
           "test_fault_76_a_default_that_a_plugin_changed_is_not_taken",
           "test_fault_76_the_options_of_all_components_are_saved",
           "test_fault_76_a_default_that_changed_since_the_save_is_an_error",
           ends_in=("KeyError", "SfkitWarning", "CheckpointError")),
    Mutant(77, "require_same", drop_call("warn"),
           "test_fault_77_an_option_that_a_plugin_added_is_named", "test_fault_77_other_versions_are_one_warning"),
)
