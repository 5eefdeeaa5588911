"""Mutants of faults 60 on: depth and settings of LeRobot's datasets and trainer, and gradients of several encoders."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise

# fmt: off
NEWEST = (
    Mutant(60, "_require_same_aspect", drop_raise("ViewsError"),
           "test_fault_60_depth_of_another_aspect_ratio_is_refused"),
)
