"""Mutants of a training step: when alignment runs, what it costs, logs and draws, and in which precision."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

ALIGNER = "sfkit/aligner.py"
HOST = "sfkit/alignment/host.py"
SCALE = "sfkit/joining/scale.py"
STEP = "sfkit/alignment/step.py"
MOMENTS = "sfkit/teachers/moments.py"

T_HOST = "tests/alignment/test_host.py"
T_SCALE = "tests/joining/test_scale.py"
T_TRAINING = "tests/test_training.py"
T_WRAP = "tests/test_wrap.py"

_CAN_TRAIN = "if not (self.enabled and self.weight and trains):"

STEPS = (
    Mutant(
        fault=30,
        what="alignment is joined and the teacher runs without gradients too",
        file=ALIGNER,
        old=_CAN_TRAIN,
        new="if not (self.enabled and self.weight and policy.training):",
        tests=in_file(T_WRAP, ["test_fault_30_eval_disabled_no_grad_and_weight_zero_change_nothing"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=30,
        what="alignment is joined and the teacher runs in eval mode too",
        file=ALIGNER,
        old=_CAN_TRAIN,
        new="if not (self.enabled and self.weight and torch.is_grad_enabled()):",
        tests=in_file(T_WRAP, ["test_fault_30_eval_mode_with_gradients_changes_nothing"]),
    ),
    Mutant(
        fault=30,
        what="`disabled` does not disable",
        file=ALIGNER,
        old=_CAN_TRAIN,
        new="if not (self.weight and trains):",
        also=(Edit(ALIGNER, "if not (self.enabled or in_a_group()):", "if False:"),),
        tests=in_file(T_WRAP, ["test_fault_30_eval_disabled_no_grad_and_weight_zero_change_nothing"]),
    ),
    Mutant(
        fault=30,
        what="the teacher runs at weight 0",
        file=ALIGNER,
        old=_CAN_TRAIN,
        new="if not (self.enabled and trains):",
        also=(
            Edit(ALIGNER, "self.schedule.factor(self.step) if self.weight else 0.0", "self.schedule.factor(self.step)"),
        ),
        tests=in_file(T_WRAP, ["test_fault_30_eval_disabled_no_grad_and_weight_zero_change_nothing"]),
    ),
    Mutant(
        fault=43,
        what="the sum is logged as the action loss",
        file=ALIGNER,
        old='"action_loss": loss.detach()',
        new='"action_loss": (loss + weight * result.loss.mean()).detach()',
        tests=in_file(T_WRAP, ["test_fault_43_the_losses_are_told_apart"]),
    ),
    Mutant(
        fault=43,
        what="the weighted alignment loss is logged",
        file=ALIGNER,
        old='"sf_loss": result.loss.detach().mean(),',
        new='"sf_loss": self.weight * result.loss.detach().mean(),',
        tests=in_file(T_WRAP, ["test_fault_43_the_losses_are_told_apart"]),
    ),
    Mutant(
        fault=48,
        what="the alignment loss counts once for each accumulated batch",
        file=SCALE,
        old="        return 1.0 / (self.accumulation * (self.processes or 1))\n",
        new="        return 1.0\n",
        tests=in_file(T_TRAINING, ["test_fault_48_num_items_in_batch_with_accumulation"]),
    ),
    Mutant(
        fault=48,
        what="an accumulation that sfkit cannot know is taken for none",
        file=SCALE,
        old="        if self.accumulation is None:\n",
        new="        if self.accumulation is None:\n            return 1.0\n        if False:\n",
        tests=in_file(T_TRAINING, ["test_fault_48_num_items_in_batch_with_accumulation"]),
    ),
    Mutant(
        fault=48,
        what="nobody asks whether the trainer multiplies the loss by the number of processes",
        file=SCALE,
        old="        if self.processes is None and _world_size() > 1:\n",
        new="        if False:\n",
        tests=in_file(T_SCALE, ["test_fault_48_several_processes_must_be_told"]),
    ),
    Mutant(
        fault=48,
        what="the alignment loss counts once for each process",
        file=SCALE,
        old="        return 1.0 / (self.accumulation * (self.processes or 1))\n",
        new="        return 1.0 / self.accumulation\n",
        tests=in_file(T_SCALE, ["test_fault_48_the_share_of_a_call_follows_batches_and_processes"]),
    ),
    Mutant(
        fault=49,
        what="a step that does not align leaves the projector out of the graph",
        file=ALIGNER,
        old="return self.joiner.anchor(output, self._zero)",
        new="return output",
        tests=("tests/test_distributed.py::test_fault_49_ranks_stay_equal",),
        says="Expected to have finished reduction",
    ),
    Mutant(
        fault=49,
        what="each rank standardises its targets by its own statistics",
        file=MOMENTS,
        old="    if not in_a_group():\n",
        new="    if True:\n",
        tests=("tests/test_distributed.py::test_fault_49_ranks_stay_equal",),
        says="differs between ranks",
    ),
    Mutant(
        fault=50,
        what="training in eval mode is passed over in silence",
        file=ALIGNER,
        old="            self._warn_if_left_in_eval(policy)\n",
        new="",
        tests=in_file(T_WRAP, ["test_fault_50_a_policy_left_in_eval_mode_is_reported_once"]),
    ),
    Mutant(
        fault=50,
        what="the warning comes in every step",
        file=ALIGNER,
        old="        if message not in self._warned:\n",
        new="        if True:\n",
        tests=in_file(T_WRAP, ["test_fault_50_a_policy_left_in_eval_mode_is_reported_once"]),
        ends_in=("SfkitWarning",),
    ),
    Mutant(
        fault=51,
        what="the projector is initialised from the global generator",
        file="sfkit/building.py",
        old="    with own_rng(seed=seed):\n",
        new="    if True:\n",
        tests=in_file(T_WRAP, ["test_fault_51_wrapping_leaves_the_random_state_alone"]),
    ),
    Mutant(
        fault=51,
        what="the teacher draws from the global generator",
        file=HOST,
        old="            own_rng(device),\n",
        new="",
        also=(Edit(HOST, "            with own_rng(device, seed=0):\n", "            if True:\n"),),
        tests=(
            f"{T_HOST}::test_fault_51_teachers_leave_the_random_state_alone",
            f"{T_WRAP}::test_fault_51_wrapping_leaves_the_random_state_alone",
        ),
    ),
    Mutant(
        fault=52,
        what="the projector is cast with the policy",
        file=ALIGNER,
        old="return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)",
        new="return moved",
        tests=in_file(T_TRAINING, ["test_fault_52_casting_the_policy_leaves_projector_and_geometry_exact"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=52,
        what="autocast reaches into the alignment",
        file=STEP,
        old="with torch.autocast(student.values.device.type, enabled=False):",
        new="if True:",
        tests=in_file(T_TRAINING, ["test_fault_52_autocast_keeps_the_alignment_in_float32"]),
    ),
    Mutant(
        fault=52,
        what="autocast reaches into the teacher",
        file=HOST,
        old="            torch.autocast(device.type, enabled=False),\n",
        new="",
        tests=in_file(T_HOST, ["test_fault_52_the_teacher_sees_float32_whatever_the_student_trains_in"]),
    ),
    Mutant(
        fault=52,
        what="the teacher is shown pictures in the precision of the student",
        file=HOST,
        old="        views = replace(views, images=views.images.float())\n",
        new="",
        tests=in_file(T_HOST, ["test_fault_52_the_teacher_sees_float32_whatever_the_student_trains_in"]),
        ends_in=("RuntimeError",),
    ),
)
