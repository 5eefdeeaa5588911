"""Mutants of how the alignment loss gets into what a training loop differentiates."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

CHECKS = "sfkit/alignment/checks.py"
JOINER = "sfkit/joining/joiner.py"
LOSS = "sfkit/policies/loss.py"
RIDE = "sfkit/joining/ride.py"
SCALE = "sfkit/joining/scale.py"

T_ACCELERATE = "tests/joining/test_accelerate.py"
T_DDP = "tests/joining/test_ddp.py"
T_GRADIENTS = "tests/joining/test_gradients.py"
T_CHECKPOINT = "tests/test_checkpoint.py"
T_OUTPUTS = "tests/joining/test_outputs.py"
T_REFUSALS = "tests/joining/test_refusals.py"
T_SCRIPTS = "plugins/sfkit-openvla/tests/test_openvla_scripts.py"
T_TRAINER = "plugins/sfkit-transformers/tests/test_trainer.py"
T_TRAINING = "tests/test_training.py"

JOINING = (
    Mutant(
        fault=13,
        what="add has nothing to add in a reentrant checkpoint, and nobody says so",
        file=JOINER,
        old="        if self._adds and trains_in_backward():\n",
        new="        if False:\n",
        tests=in_file(T_REFUSALS, ["test_fault_13_add_to_a_policy_in_a_reentrant_checkpoint_is_an_error"]),
    ),
    Mutant(
        fault=15,
        what="add gives every sample the mean of all alignments",
        file=JOINER,
        old="                loss = add_per_sample(loss, passenger)\n",
        new="                loss = loss + passenger.mean()\n",
        tests=in_file(T_GRADIENTS, ["test_fault_15_add_gives_each_sample_its_own"]),
    ),
    Mutant(
        fault=31,
        what="a resumed run does not know how many batches make a step",
        file="sfkit/checkpoint.py",
        old='        "grad_accumulation": config.grad_accumulation,\n',
        new="",
        tests=in_file(T_CHECKPOINT, ["test_fault_31_32_what_the_loop_does_with_its_loss_is_saved_with_the_run"]),
    ),
    Mutant(
        fault=55,
        what="add does not look behind the last forward",
        file=JOINER,
        old="riders_in(loss, behind=True)",
        new="riders_in(loss)",
        tests=in_file(T_GRADIENTS, ["test_fault_55_a_forward_that_is_fed_what_an_earlier_one_returned"]),
    ),
    Mutant(
        fault=55,
        what="one policy adds the alignment of another",
        file=JOINER,
        old="for ride, passenger in riders_in(loss) if ride in self._rides]",
        new="for ride, passenger in riders_in(loss)]",
        tests=in_file(T_REFUSALS, ["test_fault_55_each_of_two_policies_adds_its_own"]),
        ends_in=("LossError",),
    ),
    Mutant(
        fault=55,
        what="a pass that only looks sees the alignment once for each output",
        file=RIDE,
        old=" or this == before:\n",
        new=":\n",
        tests=in_file(T_OUTPUTS, ["test_fault_55_the_alignment_counts_once_however_many_outputs_are_used"]),
    ),
    Mutant(
        fault=3,
        what="tokens without gradient pass for aligned",
        file=CHECKS,
        old="    if not tokens.requires_grad:\n        return None\n",
        new="    if not tokens.requires_grad:\n        return tokens\n",
        tests=in_file(T_TRAINING, ["test_fault_03_a_tap_inside_a_reentrant_checkpoint_is_an_error"]),
    ),
    Mutant(
        fault=3,
        what="a tap reads what the block has made of its input, which a reentrant checkpoint cuts off",
        file="sfkit/testing/policies.py",
        old="        return TapPoint(block.input_layernorm,",
        new="        return TapPoint(block.post_layernorm,",
        tests=in_file(T_TRAINING, ["test_fault_03_reentrant_checkpointing_changes_no_gradient"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=12,
        what="a step that does not align leaves the projector out of the outputs' graph",
        file=JOINER,
        old="        carried = carry(output, zero, Ride())\n        return",
        new="        carried = None\n        return",
        tests=in_file(T_DDP, ["test_fault_12_and_49_gradients_are_the_mean_of_the_ranks"]),
        says="Expected to have finished reduction",
    ),
    Mutant(
        fault=12,
        what="DDP waits for parameters behind outputs that the loop does not use",
        file=RIDE,
        old="    size = len(found) if in_a_group() else 1\n",
        new="    size = 1\n",
        tests=(f"{T_SCRIPTS}::test_fault_12_lora_film_ddp_and_an_optimizer[oft-diffusion]",),
        says="Expected to have finished reduction",
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=13,
        what="the alignment loss joins a loss that no loop reads",
        file=JOINER,
        old='("auto", "output") and not self.adapter.loss_outside',
        new='("auto", "output")',
        tests=in_file(T_GRADIENTS, ["test_fault_13_plain"]),
    ),
    Mutant(
        fault=13,
        what="nobody notices that add is never called",
        file=JOINER,
        old="            self._missed = ride\n",
        new="            pass\n",
        tests=in_file(T_REFUSALS, ["test_fault_13_add_that_is_never_called_is_noticed_at_the_second_step"]),
    ),
    Mutant(
        fault=13,
        what="join='output' is believed where the loop reads no loss",
        file=JOINER,
        old='if join == "output" and adapter.loss_outside:',
        new="if False:",
        tests=(*in_file(T_REFUSALS, ["test_fault_13_a_loss_that_nobody_reads_is_no_place_to_join"]),),
    ),
    Mutant(
        fault=14,
        what="what rides on the outputs does not follow the division for accumulation",
        file=SCALE,
        old="        return scaled / (self.accumulation or 1)\n",
        new="        return scaled\n",
        tests=(
            *in_file(T_GRADIENTS, ["test_fault_14_accumulated"]),
            *in_file(T_ACCELERATE, ["test_fault_14_accumulation_and_mixed_precision"]),
            *in_file(T_ACCELERATE, ["test_fault_14_accelerate_trains_the_explicit_sum"]),
        ),
    ),
    Mutant(
        fault=14,
        what="what rides on the outputs does not follow the scaler",
        file=SCALE,
        old="one if self.scaler is None else self.scaler.scale(one)",
        new="one",
        tests=in_file(T_GRADIENTS, ["test_fault_14_scaled", "test_fault_14_the_real_scaler_through_its_changes"]),
    ),
    Mutant(
        fault=14,
        what="accumulation that was not told is not noticed",
        file=SCALE,
        old="        if self.accumulation is not None or parameter is None:\n",
        new="        if True:\n",
        tests=in_file(T_REFUSALS, ["test_fault_14_accumulation_that_was_not_told_is_warned_of_once"]),
    ),
    Mutant(
        fault=14,
        what="a scaler that was not told is not noticed",
        file=SCALE,
        old="if self.scaler is None and _autocast_dtype(device) == torch.float16:",
        new="if False:",
        tests=in_file(T_REFUSALS, ["test_fault_14_a_scaler_that_was_not_told_is_warned_of_once"]),
    ),
    Mutant(
        fault=4,
        what="a policy that is checkpointed as a whole counts its steps again in backward",
        file="sfkit/replay.py",
        old="    return _in_backward() and not _in_reentrant_checkpoint()\n",
        new="    return False\n",
        tests=in_file(T_GRADIENTS, ["test_fault_04_a_policy_that_is_checkpointed_as_a_whole"]),
    ),
    Mutant(
        fault=13,
        what="distributions that forward returns carry nothing",
        file="sfkit/joining/tree.py",
        old="    elif isinstance(output, _RECORDS):\n        yield from _walk(vars(output))\n",
        new="",
        tests=(f"{T_OUTPUTS}::test_fault_13_whatever_forward_returns_can_carry[distribution-carrier]",),
    ),
    Mutant(
        fault=13,
        what="a loss from elsewhere is taken for a forgotten optimizer",
        file=CHECKS,
        old="        self._went_back = True\n",
        new="        pass\n",
        also=(Edit(CHECKS, "self._went_back = False", "self._went_back = True"),),
        tests=in_file(T_OUTPUTS, ["test_fault_13_a_loss_from_elsewhere_is_told_from_a_forgotten_optimizer"]),
        says="moved the policy twice",
    ),
    Mutant(
        fault=24,
        what="the registration check takes whatever moves for the right token",
        file="sfkit/testing/registration.py",
        old="    if found[0] != wanted[0] or not own:\n",
        new="    if False:\n",
        tests=in_file("tests/test_registration.py", ["test_fault_24_a_wrong_letterbox_is_found"]),
    ),
    Mutant(
        fault=55,
        what="backward into some leaves is taken for a mere look",
        file=RIDE,
        old="    return any(_is_accumulated_into(leaf) for leaf in ctx.ride.leaves())\n",
        new="    return False\n",
        tests=in_file(
            T_OUTPUTS,
            [
                "test_fault_55_backward_into_some_leaves_trains_once",
                "test_fault_13_55_add_is_missed_also_after_backward_into_some_leaves",
            ],
        ),
    ),
    Mutant(
        fault=15,
        what="the alignment of all samples is added to each",
        file=LOSS,
        old="    return loss + extra.reshape(",
        new="    return loss + extra.sum().expand_as(extra).reshape(",
        tests=in_file(T_GRADIENTS, ["test_fault_15_a_loss_inside_the_policy"]),
    ),
    Mutant(
        fault=47,
        what="the override hides which arguments forward takes",
        file="sfkit/attach.py",
        old="    functools.update_wrapper(forward, base.forward)\n"
        "    forward.__signature__ = inspect.signature(base.forward)",
        new="    forward.__signature__ = inspect.signature(forward)",
        tests=in_file(T_TRAINER, ["test_fault_47_and_48_accumulated_batches_train_as_one"]),
        ends_in=("ValueError", "TypeError", "AttributeError"),
    ),
    *(
        Mutant(
            fault=48,
            what=f"the callback tells that the trainer {what} multiplies by the number of processes",
            file="plugins/sfkit-transformers/src/sfkit_transformers/trainer.py",
            old="args.world_size if multiplies else 1\n",
            new=f"{told}\n",
            tests=in_file(T_TRAINER, ["test_fault_48_two_processes_train_the_explicit_sum"]),
        )
        for what, told in (("never", "1"), ("always", "args.world_size"))
    ),
    Mutant(
        fault=48,
        what="in several processes the alignment is taken to follow the trainer untold",
        file=SCALE,
        old="        if self.processes is None and _world_size() > 1:\n",
        new="        if False:\n",
        tests=in_file(T_TRAINER, ["test_fault_48_two_processes_whose_number_nobody_told_are_an_error"]),
        ends_in=("FileNotFoundError",),
    ),
    Mutant(
        fault=48,
        what="the callback does not tell how many batches make a step",
        file="plugins/sfkit-transformers/src/sfkit_transformers/trainer.py",
        old="        self.handle.grad_accumulation = args.gradient_accumulation_steps\n",
        new="        self.handle.grad_accumulation = 1\n",
        tests=in_file(
            T_TRAINER,
            [
                "test_fault_47_and_48_accumulated_batches_train_as_one",
                "test_fault_48_the_trainer_trains_the_explicit_sum",
            ],
        ),
    ),
    Mutant(
        fault=55,
        what="of several forwards behind one loss only one is aligned",
        file=JOINER,
        old="        for ride, passenger in rides:\n",
        new="        for ride, passenger in rides[:1]:\n",
        tests=in_file(T_GRADIENTS, ["test_fault_55_several_forwards_before_one_backward"]),
    ),
    Mutant(
        fault=55,
        what="an alignment counts again with every backward pass through its forward",
        file=RIDE,
        old="        self.spent = accumulates\n",
        new="        pass\n",
        tests=in_file(T_GRADIENTS, ["test_fault_55_each_forward_counts_once_however_often_a_loop_goes_backward"]),
    ),
    Mutant(
        fault=55,
        what="of a forward whose loss is inside the policy nothing is joined",
        file=LOSS,
        old="        return loss + extra.mean().to(torch.promote_types(loss.dtype, torch.float32))\n",
        new="        return loss + 0 * extra.mean().to(torch.promote_types(loss.dtype, torch.float32))\n",
        tests=in_file(T_GRADIENTS, ["test_fault_55_a_loss_inside_the_policy_follows_every_pass"]),
    ),
)
