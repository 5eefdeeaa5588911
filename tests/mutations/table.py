"""The table of mutants: by the number of the fault, at least one in each distribution that guards it."""

from __future__ import annotations

from faults_01_to_23 import LOW
from faults_24_on import HIGH
from faults_60_on import NEWEST
from faults_67_to_69 import SAVED
from faults_70_on import TRAINING
from faults_80_on import READ
from faults_85_to_89 import PRESETS
from faults_90_on import STORED
from mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*LOW, *HIGH, *NEWEST, *SAVED, *TRAINING, *READ, *PRESETS, *STORED)
