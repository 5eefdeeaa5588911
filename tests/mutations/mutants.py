"""The table of mutants, and what reads it."""

from __future__ import annotations

from mutant import REQUIRED, Edit, Mutant, StaleMutantError, function_of, numbered_tests, numbers_of
from mutants_core import CORE
from mutants_lerobot import LEROBOT

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

MUTANTS: tuple[Mutant, ...] = (*CORE, *LEROBOT)
