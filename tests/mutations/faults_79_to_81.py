"""Mutants of faults 79 to 81: what files say of cameras and poses, and what they say twice."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise

# fmt: off
READ = (
    Mutant(79, "Camera._is_one", drop_raise("ValueError", mentions="_FARTHEST"),
           "test_fault_79_a_matrix_that_no_lens_has_is_refused[fx]"),
    Mutant(80, "Camera._is_one", drop_raise("ValueError", mentions="_POSE"),
           "test_fault_80_a_pose_that_is_not_rigid_is_refused[scaled]"),
    Mutant(80, "PoseTable.__post_init__", drop_raise("ConfigError", mentions="_POSE"),
           "test_fault_80_each_pose_of_a_table_is_rigid"),
    Mutant(81, "places._object", drop_raise("ValueError"), "test_fault_81_a_key_that_stands_twice_is_refused"),
)
