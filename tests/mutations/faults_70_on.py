"""Mutants of faults 70 on: components that break their contract, and the balance under large loss scales."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_call, drop_raise, fix_condition, replace_return

# fmt: off
TRAINING = (
    Mutant(8, "SelfCheck._check_projectors", drop_raise("GradientError", within="_frozen_at_wrap"),
           "test_fault_08_a_part_of_the_projector_frozen_after_wrap_is_named",
           "test_fault_08_lora_on_a_part_of_the_projector_is_found_out"),
    Mutant(70, "GradientSums.known",
           replace_return("_ & (self.alignment.sum() * self.action.sum() * self.unweighted.sum()).isfinite()"),
           "test_fault_70_a_large_loss_scale_leaves_the_balance_alive",
           "test_fault_70_each_sum_is_tested_by_itself"),
    Mutant(71, "TeacherRunner.features", drop_call("_check_maps"),
           "test_fault_71_a_teacher_that_breaks_its_contract_is_named", "test_fault_71_later_steps_are_checked",
           ends_in=("AttributeError", "TypeError", "ValueError", "IndexError", "RuntimeError", "ShapeError")),
    Mutant(78, "check_fit", drop_raise("LiberoError", mentions="sorted"),
           "test_fault_78_a_camera_that_a_rename_hides_is_told"),
    Mutant(72, "ContractCheck.aligned", drop_call("_check_masked_tokens"),
           "test_fault_72_an_objective_that_breaks_its_contract_is_named"),
    Mutant(72, "AlignmentPair._objective", drop_raise("broken"),
           "test_fault_72_an_objective_that_breaks_its_contract_is_named",
           ends_in=("AttributeError", "RuntimeError", "IndexError")),
    Mutant(73, "Entry.__post_init__", fix_condition(False, "any", "fullmatch"),
           "test_fault_73_a_pattern_names_a_package_and_a_class", ends_in="ValueError"),
    Mutant(74, "Entry.load", drop_raise("PluginError", mentions="distribution"),
           "test_fault_74_another_name_than_that_of_the_class_is_refused"),
    Mutant(74, "Registry.add_plugin", drop_raise("PluginError", mentions="kind"),
           "test_fault_74_names_of_the_core_are_reserved", ends_in=("IndexError", "PluginError")),
)
