"""Mutants on real policies of LeRobot: training steps, depth, calibration and units."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

BASE = "plugins/sfkit-lerobot/src/sfkit_lerobot/base.py"
CAMERAS = "sfkit/view_geometry.py"
DATASET = "plugins/sfkit-lerobot/src/sfkit_lerobot/dataset.py"
FEATURES = "plugins/sfkit-lerobot/src/sfkit_lerobot/features.py"
ALIGNER = "sfkit/aligner.py"

T_DATASET = "plugins/sfkit-lerobot/tests/test_dataset.py"
T_FAULTS = "plugins/sfkit-lerobot/tests/test_faults.py"
T_GEOMETRY = "plugins/sfkit-lerobot/tests/test_geometry.py"
T_SAVING = "plugins/sfkit-lerobot/tests/test_saving.py"
T_TRAINING = "plugins/sfkit-lerobot/tests/test_training.py"

LEROBOT_STEPS = (
    # -------------------------------------------------------------------------------------------------- training steps
    Mutant(
        fault=31,
        what="the step counter is not restored",
        file=ALIGNER,
        old='self.steps = int(state_dict.pop(f"{prefix}step", self.steps))',
        new='state_dict.pop(f"{prefix}step", None)',
        tests=in_file(T_SAVING, ["test_fault_31_training_resumes_where_it_was"]),
    ),
    Mutant(
        fault=30,
        what="`disabled` does not disable",
        file=ALIGNER,
        old="if not (self.enabled and self.weight and trains):",
        new="if not (self.weight and trains):",
        also=(Edit(ALIGNER, "if not (self.enabled or in_a_group()):", "if False:"),),
        tests=in_file(T_TRAINING, ["test_fault_30_outside_training_nothing_changes_by_a_bit"]),
    ),
    Mutant(
        fault=43,
        what="the sum is logged as the action loss",
        file=ALIGNER,
        old='"action_loss": loss.detach()',
        new='"action_loss": (loss + weight * result.loss.mean()).detach()',
        tests=in_file(T_FAULTS, ["test_fault_43_lerobots_log_tells_the_losses_apart"]),
    ),
    Mutant(
        fault=50,
        what="training in eval mode is passed over in silence",
        file=ALIGNER,
        old="            self._warn_if_left_in_eval(policy)\n",
        new="",
        tests=(
            f"{T_TRAINING}::test_fault_50_training_in_eval_mode_warns_once",
            f"{T_SAVING}::test_fault_50_from_pretrained_leaves_a_policy_that_never_aligns_and_says_so",
        ),
    ),
    Mutant(
        fault=51,
        what="wrap and the teacher draw from the global generator",
        file="sfkit/rng.py",
        old="    with torch.random.fork_rng(devices=devices):\n",
        new="    if True:\n",
        tests=in_file(T_TRAINING, ["test_fault_51_wrap_and_teacher_leave_the_global_random_state"]),
    ),
    Mutant(
        fault=52,
        what="the projector is cast with the policy",
        file=ALIGNER,
        old="return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)",
        new="return moved",
        tests=in_file(T_TRAINING, ["test_fault_52_smolvla_in_bfloat16_keeps_alignment_in_float32"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=52,
        what="the projector is built in the precision of the policy",
        file="sfkit/forcing.py",
        old="handle.to(trainable.device)",
        new="handle.to(trainable.device, torch.bfloat16)",
        also=(
            Edit(ALIGNER, "return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)", "return moved"),
            Edit("sfkit/alignment/step.py", "values.float(), 0.0)", "values.bfloat16(), 0.0)"),
            Edit("sfkit/alignment/step.py", "return values.to(torch.float32,", "return values.to(torch.bfloat16,"),
        ),
        tests=in_file(T_TRAINING, ["test_fault_52_pi0_in_its_own_bfloat16_mode_keeps_alignment_in_float32"]),
    ),
    Mutant(
        fault=52,
        what="depth rounded to bfloat16 is accepted",
        file=CAMERAS,
        old="    if value.dtype == torch.bfloat16:\n",
        new="    if False:\n",
        tests=in_file(T_GEOMETRY, ["test_fault_52_depth_in_bfloat16_is_an_error"]),
    ),
    Mutant(
        fault=52,
        what="geometry takes the precision of the pictures",
        file=BASE,
        old="geometry = view_geometry(self.cameras, batch, boxes, images, self.present_frame)",
        new="geometry = view_geometry(self.cameras, batch, boxes, images.bfloat16(), self.present_frame)",
        also=(Edit(CAMERAS, "box.view).float() * rig", "box.view).to(batch[key].dtype) * rig"),),
        tests=in_file(T_TRAINING, ["test_fault_52_geometry_stays_in_float32_where_pictures_do_not"]),
    ),
    # ---------------------------------------------------------------------------------- depth, calibration and units
    Mutant(
        fault=53,
        what="depth, calibration and labels become features of the policy",
        file=FEATURES,
        old="        if not (key in named or _is_named_like_geometry(key) or is_depth_feature(feature))\n",
        new="        if True\n",
        tests=(
            f"{T_GEOMETRY}::test_fault_53_depth_and_calibration_never_become_policy_features",
            f"{T_DATASET}::test_fault_53_the_datasets_own_geometry_is_no_policy_feature",
        ),
    ),
    Mutant(
        fault=53,
        what="columns that only the rig names become features of the policy",
        file=FEATURES,
        old="return {key for camera in cameras for key in (camera.depth_key, camera.pose_key) if key is not None}",
        new="return set()",
        tests=in_file(
            T_GEOMETRY,
            [
                "test_fault_53_depth_and_calibration_never_become_policy_features",
                "test_fault_53_strip_geometry_cleans_an_existing_config",
            ],
        ),
    ),
    Mutant(
        fault=53,
        what="what is found in a configuration stays there",
        file=FEATURES,
        old="        del inputs[key]\n",
        new="        pass\n",
        tests=in_file(T_GEOMETRY, ["test_fault_53_strip_geometry_cleans_an_existing_config"]),
    ),
    Mutant(
        fault=53,
        what="a depth map among the policy's pictures is accepted",
        file=BASE,
        old="if feature.shape[0] != 3]",
        new="if False]",
        tests=in_file(T_GEOMETRY, ["test_fault_53_a_policy_that_was_given_depth_is_refused"]),
    ),
    Mutant(
        fault=54,
        what="a depth unit that is not recorded is taken for metres",
        file="sfkit/cameras.py",
        old="unit = self.cameras[key].depth_unit\n",
        new='unit = self.cameras[key].depth_unit or "m"\n',
        tests=in_file(T_GEOMETRY, ["test_fault_54_an_unknown_unit_is_an_error"]),
    ),
    Mutant(
        fault=54,
        what="the unit is recorded and then not used",
        file=CAMERAS,
        old=" * rig.depth_scale(key)",
        new="",
        tests=in_file(T_GEOMETRY, ["test_fault_54_millimetres_are_metres_times_a_thousand"]),
    ),
    Mutant(
        fault=54,
        what="LeRobot's depth is taken for metres",
        file=DATASET,
        old="return str(dataset.depth_output_unit) if converts else None",
        new='return "m" if converts else None',
        tests=in_file(
            T_DATASET,
            [
                "test_fault_54_the_unit_is_that_in_which_lerobot_returns_depth",
                "test_fault_54_lerobots_default_is_millimetres",
                "test_fault_54_depth_recorded_in_metres",
                "test_fault_54_contradicting_units_are_an_error",
            ],
        ),
    ),
    Mutant(
        fault=54,
        what="nobody asks for a unit that the dataset does not record",
        file=DATASET,
        old="    if unit is None and camera.depth_unit is None:\n",
        new="    if False:\n",
        tests=in_file(T_DATASET, ["test_fault_54_an_unrecorded_unit_is_an_error_and_can_be_stated"]),
    ),
    Mutant(
        fault=54,
        what="of two units one is silently chosen",
        file=DATASET,
        old="    if unit is not None and camera.depth_unit not in (None, unit):\n",
        new="    if False:\n",
        tests=in_file(T_DATASET, ["test_fault_54_contradicting_units_are_an_error"]),
    ),
)
