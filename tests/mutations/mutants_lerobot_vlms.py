"""Mutants that tests of LeRobot's policies with a vision-language model must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

CHECKS = "sfkit/alignment/checks.py"

_TESTS = "plugins/sfkit-lerobot/tests"
T_TAPS = f"{_TESTS}/test_taps.py"

LEROBOT_VLMS = (
    Mutant(
        fault=6,
        what="nobody asks whether gradient reaches pi0-FAST",
        file=CHECKS,
        old="            if leaf is None:\n",
        new="            if leaf is None:\n                continue\n            if False:\n",
        tests=in_file(T_TAPS, ["test_fault_06_pi0_fast_trains_its_backbone_by_default_and_says_so_when_frozen"]),
    ),
)
