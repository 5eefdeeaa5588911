"""Mutants that tests of the ``lerobot-train`` plugin must notice, on runs of LeRobot's own command."""

from __future__ import annotations

from mutant import Mutant, in_file

HERE = "plugins/lerobot_policy_spatial_forcing/src/lerobot_policy_spatial_forcing"
COMPAT, CONFIGURATION, GEOMETRY = f"{HERE}/compat.py", f"{HERE}/configuration_sf.py", f"{HERE}/geometry.py"
LORA, MODELING, RESUMING, WEIGHTS = (f"{HERE}/{name}.py" for name in ("lora", "modeling_sf", "resuming", "weights"))
ALIGNER, ATTACH, CHECKPOINT = "sfkit/aligner.py", "sfkit/attach.py", "sfkit/checkpoint.py"

_TESTS = "plugins/lerobot_policy_spatial_forcing/tests"
T_CAMERAS, T_DISCOVERY, T_PEFT = (f"{_TESTS}/test_{name}.py" for name in ("cameras", "discovery", "peft"))
T_RANKS, T_START, T_TRAIN = (f"{_TESTS}/test_{name}.py" for name in ("two_ranks", "start", "train"))
_RESUMED = "test_fault_31_32_a_resumed_run_continues_the_uninterrupted_one"
_WRAPPED = "        SpatialForcing.wrap(target, **arguments, cameras=rig)\n"

TRAIN = (
    # ------------------------------------------------------------------------------------------------- in each step
    Mutant(
        fault=2,
        what="the swapped class overrides the call, and the trainer calls forward",
        file=ATTACH,
        old='        "forward": forward,\n',
        new='        "__call__": forward,\n',
        tests=in_file(T_TRAIN, ["test_fault_02_the_trainer_calls_forward_and_alignment_runs_in_every_step"]),
    ),
    Mutant(
        fault=10,
        what="the optimizer's parameters are those of the base policy",
        file=MODELING,
        old="        return lora.with_projector(super().get_optim_params(), handle.parameters)\n",
        new="        ours = {id(one) for one in handle.parameters()}\n"
        "        return [one for one in super().get_optim_params() if id(one) not in ours]\n",
        tests=in_file(T_TRAIN, ["test_fault_10_the_projector_is_in_the_optimizer_and_moves"]),
        ends_in=("GradientError",),
        says="never the projector",
    ),
    Mutant(
        fault=30,
        what="alignment runs in evaluation",
        file=ALIGNER,
        old="if not (self.enabled and self.weight and trains):",
        new="if not (self.enabled and self.weight):",
        tests=in_file(T_TRAIN, ["test_fault_30_evaluation_neither_runs_the_teacher_nor_counts_its_loss"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=50,
        what="training in eval mode is passed over in silence",
        file=ALIGNER,
        old="            self._warn_if_left_in_eval(policy)\n",
        new="",
        tests=in_file(T_CAMERAS, ["test_fault_50_a_policy_from_a_checkpoint_is_in_eval_mode_and_says_so"]),
    ),
    # --------------------------------------------------------------------------------------------------------- PEFT
    Mutant(
        fault=7,
        what="the default targets are LeRobot's: the action expert",
        file=MODELING,
        old="        return defaults if self._reach is None else self._reach.added_to(defaults)\n",
        new="        return defaults\n",
        tests=in_file(
            T_PEFT,
            [
                "test_fault_07_the_default_targets_reach_the_blocks_before_the_tap",
                "test_fault_07_pi0_and_pi05_get_targets_before_the_tap_too",
            ],
        ),
        ends_in=("GradientError",),
        says="nowhere before depth",
    ),
    Mutant(
        fault=7,
        what="adapters that alignment cannot reach are not refused",
        file=MODELING,
        old="        reach.require(self)\n",
        new="",
        tests=in_file(T_PEFT, ["test_fault_07_targets_in_the_action_expert_alone_are_refused_with_the_right_ones"]),
    ),
    Mutant(
        fault=8,
        what="beside an adapter the optimizer does not know the projector",
        file=LORA,
        old="    items = list(parameters)\n",
        new="    return parameters\n    items = list(parameters)\n",
        tests=in_file(T_PEFT, ["test_fault_08_the_projector_is_trained_and_kept_beside_the_adapter"]),
        ends_in=("GradientError",),
        says="never the projector",
    ),
    # ---------------------------------------------------------------------------------------------------- two ranks
    Mutant(
        fault=11,
        what="DDP does not know the projector",
        file=MODELING,
        old=_WRAPPED,
        new=_WRAPPED + "        names = [name for name, _ in target.named_parameters()]\n"
        '        target._ddp_params_and_buffers_to_ignore = [name for name in names if "spatial_forcing" in name]\n',
        tests=in_file(
            T_RANKS,
            [
                "test_fault_11_parameters_are_equal_on_both_ranks",
                "test_fault_11_gradients_of_the_projector_are_averaged",
            ],
        ),
    ),
    Mutant(
        fault=32,
        what="each rank counts its own steps",
        file=ALIGNER,
        old="        self.steps += fresh\n",
        new="        self.steps += fresh + (torch.distributed.is_initialized() and torch.distributed.get_rank())\n",
        tests=in_file(T_RANKS, ["test_fault_32_the_step_counter_is_the_same_on_both_ranks"]),
    ),
    # ---------------------------------------------------------------------------------------------------- beginning
    Mutant(
        fault=29,
        what="missing and left-over keys are LeRobot's affair",
        file=WEIGHTS,
        old="        if missing or self.unexpected:\n",
        new="        if False:\n",
        tests=(
            f"{T_START}::test_fault_29_keys_that_do_not_fit_are_an_error[missing]",
            f"{T_START}::test_fault_29_keys_that_do_not_fit_are_an_error[unexpected]",
            f"{T_START}::test_fault_29_what_pi0_only_prints_is_an_error[pi0-missing]",
            f"{T_START}::test_fault_29_what_pi0_only_prints_is_an_error[pi05-unexpected]",
        ),
    ),
    Mutant(
        fault=29,
        what="weights that LeRobot gave up loading are not missed",
        file=WEIGHTS,
        old="        if self.error or not self.ran:\n",
        new="        if False:\n",
        tests=(f"{T_START}::test_fault_29_what_pi0_only_prints_is_an_error[pi0-absent]",),
    ),
    Mutant(
        fault=29,
        what="a damaged file fails in somebody else's words",
        file=MODELING,
        old="        except FAILURES as error:\n",
        new="        except ZeroDivisionError as error:\n",
        tests=in_file(T_START, ["test_fault_29_damaged_or_misshapen_weights_are_an_error"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=29,
        what="a projector of another depth or teacher is taken, if it is of the right width",
        file=RESUMING,
        old="    if told != found:\n",
        new="    if False:\n",
        tests=in_file(T_START, ["test_fault_29_a_projector_of_another_teacher_is_an_error"]),
    ),
    # ----------------------------------------------------------------------------------------------------- resuming
    Mutant(
        fault=31,
        what="the projector is not restored",
        file=RESUMING,
        old="    checkpoint.load_into(handle, folder)\n",
        new="",
        tests=(f"{T_TRAIN}::{_RESUMED}", f"{T_PEFT}::test_fault_31_adapter_and_projector_resume"),
    ),
    Mutant(
        fault=31,
        what="LeRobot's data loader disturbs the random state of a resumed run",
        file=RESUMING,
        old="        load_rng_state(self.folder)\n",
        new="",
        tests=(f"{T_TRAIN}::{_RESUMED}",),
    ),
    Mutant(
        fault=32,
        what="a resumed run begins its schedule anew",
        file=RESUMING,
        old="    if trainer.resume is False:\n",
        new="    if True:\n",
        tests=(f"{T_TRAIN}::{_RESUMED}",),
    ),
    Mutant(
        fault=31,
        what="nobody takes back what was moved away by a save that was killed",
        file=CHECKPOINT,
        old="    if local.is_dir():\n        _recover(local)\n",
        new="",
        tests=(
            "tests/test_checkpoint_recovery.py::"
            "test_fault_31_a_kill_while_the_folder_is_replaced_leaves_the_earlier_one[2]",
        ),
        ends_in=("CheckpointError",),
    ),
    # ---------------------------------------------------------------------------------------- discovery and launching
    Mutant(
        fault=41,
        what="importing the package registers nothing",
        file=CONFIGURATION,
        old="    PreTrainedConfig.register_subclass(base.type)(made)\n",
        new="",
        tests=in_file(T_DISCOVERY, ["test_fault_41_lerobot_registers_the_types_by_itself"]),
    ),
    Mutant(
        fault=42,
        what="one process instead of two is passed over in silence",
        file=COMPAT,
        old='    if asked > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:\n',
        new="    if False:\n",
        tests=in_file(T_DISCOVERY, ["test_fault_42_one_process_where_two_were_asked_for_is_said"]),
    ),
    Mutant(
        fault=42,
        what="the warning comes where two processes run, too",
        file=COMPAT,
        old='    if asked > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:\n',
        new="    if asked > 1:\n",
        tests=in_file(T_DISCOVERY, ["test_fault_42_nothing_is_said_where_all_is_well"]),
        ends_in=("SfkitWarning",),
    ),
    # ----------------------------------------------------------------------------------------------------- geometry
    Mutant(
        fault=53,
        what="the policy is given the depth maps",
        file=CONFIGURATION,
        old="        removed = strip_geometry(self)\n",
        new="        removed: list[str] = []\n",
        tests=in_file(T_TRAIN, ["test_fault_53_54_depth_and_calibration_are_for_the_teacher_alone"]),
        ends_in=("AdapterError", "ValueError", "RuntimeError"),
    ),
    Mutant(
        fault=53,
        what="nobody asks whether the calibrated cameras are the policy's",
        file=GEOMETRY,
        old="        if not set(names) & set(rig.cameras):\n",
        new="        if False:\n",
        tests=in_file(T_CAMERAS, ["test_fault_53_cameras_of_another_name_are_an_error_that_names_the_rename_map"]),
    ),
    Mutant(
        fault=54,
        what="the unit is metres, whatever the trainer asks for",
        file=GEOMETRY,
        old="    dataset = _Dataset(meta, trainer.depth_output_unit, trainer.image_transforms)\n",
        new='    dataset = _Dataset(meta, "m", trainer.image_transforms)\n',
        tests=(
            f"{T_TRAIN}::test_fault_53_54_depth_and_calibration_are_for_the_teacher_alone",
            f"{T_CAMERAS}::test_fault_54_the_unit_is_the_one_that_the_trainer_asks_the_dataset_for",
        ),
    ),
)
