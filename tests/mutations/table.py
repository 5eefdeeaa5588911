"""The table of mutants: by the number of the fault, at least one in each distribution that guards it."""

from __future__ import annotations

from faults_01_to_23 import LOW
from faults_24_on import HIGH
from faults_60_on import NEWEST
from faults_67_to_69 import SAVED
from faults_70_on import TRAINING
from faults_79_to_81 import READ
from faults_82_to_84 import PRESETS
from faults_85_on import STORED
from mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*LOW, *HIGH, *NEWEST, *SAVED, *TRAINING, *READ, *PRESETS, *STORED)
