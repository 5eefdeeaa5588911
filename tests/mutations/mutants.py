"""The table of mutants."""

from __future__ import annotations

from mutants_core import CORE
from mutants_lerobot import LEROBOT

MUTANTS = (*CORE, *LEROBOT)
