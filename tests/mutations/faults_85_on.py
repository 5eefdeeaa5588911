"""Mutants of faults 85 on, and of 25, 27, 37 and 38 where the feature store guards them."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise, fix_condition, replace_call, replace_return

# fmt: off
STORED = (
    Mutant(25, "StoreTeacher._require_same_recipe", drop_raise("StoreError"),
           "test_fault_25_cameras_in_another_order_are_an_error"),
    Mutant(27, "StoreTeacher._expect_same", drop_raise("StoreError"),
           "test_fault_27_other_pixels_than_the_teacher_saw_are_an_error",
           "test_fault_27_pixels_are_compared_later_too"),
    Mutant(37, "StoreTeacher._require_same_recipe", drop_raise("StoreError"),
           "test_fault_37_another_student_is_refused_with_both_values"),
    Mutant(37, "Manifest.differences", replace_return("[]"),
           "test_fault_37_another_recipe_is_refused_with_both_values"),
    Mutant(37, "Shard.__post_init__", drop_raise("StoreError"),
           "test_fault_37_a_shard_of_another_store_is_refused", ends_in="StoreError"),
    Mutant(38, "StoreTeacher._compare_pixels", fix_condition(False, "pixels"),
           "test_fault_38_features_are_found_by_frame_not_by_pixels", ends_in="StoreError"),
    Mutant(85, "Shard.read", drop_raise("StoreError"), "test_fault_85_an_index_of_other_rows_is_noticed"),
    Mutant(86, "Store.__init__", drop_raise("StoreError", within="is_file"),
           "test_fault_86_a_build_without_its_index_is_not_read"),
    Mutant(87, "Shard.read", drop_raise("damaged"), "test_fault_87_a_flipped_bit_is_found_when_it_is_read"),
    Mutant(88, "at_future_frame", replace_call("later_keys", "_0"),
           "test_fault_88_the_key_of_a_future_frame_is_its_own"),
    Mutant(89, "build_store", drop_raise("ConfigError", within="state"),
           "test_fault_89_a_teacher_that_gathers_statistics_is_refused"),
)
