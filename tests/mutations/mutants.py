"""The table of mutants, and what reads it."""

from __future__ import annotations

from mutant import REQUIRED, Edit, Mutant, StaleMutantError, function_of, numbered_tests, numbers_of
from mutants_depth_anything import DEPTH_ANYTHING
from mutants_dust3r import DUST3R
from mutants_generic import GENERIC
from mutants_health import HEALTH
from mutants_joining import JOINING
from mutants_lerobot_resnets import LEROBOT_RESNETS
from mutants_lerobot_steps import LEROBOT_STEPS
from mutants_lerobot_taps import LEROBOT_TAPS
from mutants_lerobot_views import LEROBOT_VIEWS
from mutants_lerobot_vlms import LEROBOT_VLMS
from mutants_masks import MASKS
from mutants_objectives import OBJECTIVES
from mutants_openpi import OPENPI
from mutants_openvla import OPENVLA
from mutants_pairs import PAIRS
from mutants_saving import SAVING
from mutants_steps import STEPS
from mutants_taps import TAPS
from mutants_teachers import TEACHERS
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
    *TAPS,
    *MASKS,
    *STEPS,
    *JOINING,
    *TEACHERS,
    *SAVING,
    *LEROBOT_TAPS,
    *LEROBOT_VIEWS,
    *LEROBOT_VLMS,
    *LEROBOT_STEPS,
    *LEROBOT_RESNETS,
    *TRANSFORMERS,
    *TRUNKS,
    *DEPTH_ANYTHING,
    *DUST3R,
    *VGGT,
    *TRAIN,
    *OBJECTIVES,
    *HEALTH,
    *PAIRS,
    *OPENPI,
    *OPENVLA,
    *GENERIC,
)
