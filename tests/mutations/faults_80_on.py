"""Mutants of faults 80 on: components that break their contract, and the balance under large loss scales."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise, replace_return

# fmt: off
TRAINING = (
    Mutant(8, "SelfCheck._check_projectors", drop_raise("GradientError", within="_frozen_at_wrap"),
           "test_fault_08_a_part_of_the_projector_frozen_after_wrap_is_named",
           "test_fault_08_lora_on_a_part_of_the_projector_is_found_out"),
    Mutant(80, "GradientSums.known",
           replace_return("_ & (self.alignment.sum() * self.action.sum() * self.unweighted.sum()).isfinite()"),
           "test_fault_80_a_large_loss_scale_leaves_the_balance_alive",
           "test_fault_80_each_sum_is_tested_by_itself"),
)
