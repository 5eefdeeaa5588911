"""Mutants that tests of schedules, balance and the health monitor must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

ALIGNER = "sfkit/aligner.py"
GRADIENTS = "sfkit/alignment/gradients.py"
T_GRADIENTS, T_SCHEDULING = "tests/alignment/test_gradients.py", "tests/test_scheduling.py"
RULES, T_HEALTH = "sfkit/health/rules.py", "tests/health/test_health.py"
T_RANKS = "tests/test_weights_distributed.py"

HEALTH = (
    Mutant(
        fault=32,
        what="a step at which the schedule rests is not counted",
        file=ALIGNER,
        old="        if not (self._count_step() and in_a_group()):\n",
        new="        if not in_a_group():\n",
        tests=in_file(T_SCHEDULING, ["test_fault_32_with_accumulation_a_step_is_an_optimizer_step"]),
    ),
    Mutant(
        fault=32,
        what="a step under `disabled` is not counted",
        file=ALIGNER,
        old="                self.steps += 1\n",
        new="",
        tests=in_file(T_SCHEDULING, ["test_fault_32_every_training_forward_counts_aligned_or_not"]),
    ),
    Mutant(
        fault=32,
        what="a resumed run begins its schedule again",
        file=ALIGNER,
        old='self.steps = int(state_dict.pop(f"{prefix}step", self.steps))',
        new='state_dict.pop(f"{prefix}step", None)',
        tests=in_file(T_SCHEDULING, ["test_fault_32_a_schedule_goes_on_after_a_resume"]),
    ),
    Mutant(
        fault=32,
        what="each rank balances by its own gradients",
        file=GRADIENTS,
        old="            torch.distributed.all_reduce(table)\n",
        new="            torch.distributed.all_reduce(table.clone())\n",
        tests=(f"{T_RANKS}::test_fault_32_ranks_agree_on_step_weight_and_parameters[1]",),
    ),
    Mutant(
        fault=32,
        what="the balance begins again after a resume",
        file=ALIGNER,
        old="            self.balance.log = log.detach().clone().float()\n",
        new="            pass\n",
        tests=in_file(T_GRADIENTS, ["test_fault_32_the_balance_survives_a_resume"]),
    ),
    Mutant(
        fault=39,
        what="the gradient meter keeps the tapped tensors",
        file=GRADIENTS,
        old="        branch = tensor.view_as(tensor)\n",
        new="        self.kept = tensor\n        branch = tensor.view_as(tensor)\n",
        tests=in_file(T_GRADIENTS, ["test_fault_39_hooks_and_gradients_go_with_the_graph"]),
    ),
    Mutant(
        fault=44,
        what="the action gradient is taken to be the sum of both",
        file=GRADIENTS,
        old="gradient.detach().float() - alignment, 0.0)",
        new="gradient.detach().float(), 0.0)",
        tests=in_file(T_HEALTH, ["test_fault_44_opposed_gradients_are_named"]),
    ),
    Mutant(
        fault=44,
        what="nothing is said of an alignment that dominates",
        file=RULES,
        old="    if health.ratio > limits.dominates:\n",
        new="    if False:\n",
        tests=in_file(T_HEALTH, ["test_fault_44_a_weight_of_100_is_named"]),
    ),
    Mutant(
        fault=44,
        what="the balance never hears of the gradients",
        file=ALIGNER,
        old="                self.balance.update(sums)\n",
        new="                pass\n",
        tests=in_file(T_HEALTH, ["test_fault_44_the_balance_keeps_alignment_from_dominating"]),
    ),
    Mutant(
        fault=16,
        what="the monitor compares tokens in their places alone",
        file="sfkit/health/registration.py",
        old="    (down, right), (_, rows, columns) = shift, grid.shape\n",
        new="    (down, right), (_, rows, columns) = (0, 0), grid.shape\n",
        tests=in_file(T_HEALTH, ["test_fault_16_tokens_off_by_one_are_named"]),
        ends_in=("ValueError",),
    ),
)
