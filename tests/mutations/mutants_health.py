"""Mutants that tests of schedules, balance and the health monitor must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

ALIGNER = "sfkit/aligner.py"
T_SCHEDULING = "tests/test_scheduling.py"

HEALTH = (
    Mutant(
        fault=32,
        what="a step in which nothing is aligned is not counted",
        file=ALIGNER,
        old="        self._count_step()\n        if not (torch",
        new="        if not (torch",
        tests=in_file(
            T_SCHEDULING,
            [
                "test_fault_32_every_training_forward_counts_aligned_or_not",
                "test_fault_32_with_accumulation_a_step_is_an_optimizer_step",
            ],
        ),
    ),
    Mutant(
        fault=32,
        what="a resumed run begins its schedule again",
        file=ALIGNER,
        old='self.steps = int(state_dict.pop(f"{prefix}step", self.steps))',
        new='state_dict.pop(f"{prefix}step", None)',
        tests=in_file(T_SCHEDULING, ["test_fault_32_a_schedule_goes_on_after_a_resume"]),
    ),
)
