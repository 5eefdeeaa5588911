"""The table of mutants, and what reads it."""

from __future__ import annotations

from mutant import REQUIRED, Edit, Mutant, StaleMutantError, function_of, numbered_tests, numbers_of
from mutants_core import CORE
from mutants_depth_anything import DEPTH_ANYTHING
from mutants_dust3r import DUST3R
from mutants_lerobot import LEROBOT
from mutants_objectives import OBJECTIVES
from mutants_train import TRAIN
from mutants_transformers import TRANSFORMERS
from mutants_trunks import TRUNKS
from mutants_vggt import VGGT

__all__ = [
    "MUTANTS",
    "REQUIRED",
    "Edit",
    "Mutant",
    "StaleMutantError",
    "function_of",
    "numbered_tests",
    "numbers_of",
]

MUTANTS: tuple[Mutant, ...] = (
    *CORE,
    *LEROBOT,
    *TRANSFORMERS,
    *TRUNKS,
    *DEPTH_ANYTHING,
    *DUST3R,
    *VGGT,
    *TRAIN,
    *OBJECTIVES,
)
