"""Mutants that tests of the LeRobot plugin must notice, on real policies."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

HERE = "plugins/sfkit-lerobot/src/sfkit_lerobot"
BASE, CAMERAS, DATASET = f"{HERE}/base.py", f"{HERE}/cameras.py", f"{HERE}/dataset.py"
FEATURES, LETTERBOX, NORMALIZATION = f"{HERE}/features.py", f"{HERE}/letterbox.py", f"{HERE}/normalization.py"
PI0, PI05, SMOLVLA = (f"{HERE}/{name}.py" for name in ("pi0", "pi05", "smolvla"))
ALIGNER, ATTACH, CHECKS = "sfkit/aligner.py", "sfkit/attach.py", "sfkit/alignment/checks.py"

_TESTS = "plugins/sfkit-lerobot/tests"
T_DATASET, T_FAULTS, T_GEOMETRY = (f"{_TESTS}/test_{name}.py" for name in ("dataset", "faults", "geometry"))
T_LORA, T_REGISTRATION, T_SAVING = (f"{_TESTS}/test_{name}.py" for name in ("lora", "registration", "saving"))
T_PI05, T_TAPS, T_TRAINING, T_VIEWS = (f"{_TESTS}/test_{name}.py" for name in ("pi05", "taps", "training", "views"))

_INPUT_NORM = "return TapPoint(decoder.layers[depth].input_layernorm, path)"
_PRESENT_FIRST = "(batch[key].shape[-2], batch[key].shape[-1])) for key in keys if key in batch\n"
_OWN_CELL = "test_fault_20_a_patch_moves_its_own_token_and_its_own_cell"

LEROBOT = (
    # ------------------------------------------------------------------------------------------------------ taps
    Mutant(
        fault=1,
        what="the tap is on the decoder block, which LeRobot never calls",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(decoder.layers[depth], path)",
        tests=in_file(T_TAPS, ["test_fault_01_and_02_taps_fire_once_where_hooks_on_blocks_or_policy_are_silent"]),
    ),
    Mutant(
        fault=2,
        what="the tap is on the policy object, whose forward LeRobot calls directly",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(self.policy, path)",
        tests=(
            f"{T_TAPS}::test_fault_01_and_02_taps_fire_once_where_hooks_on_blocks_or_policy_are_silent"
            "[smolvla-forward]",
        ),
    ),
    Mutant(
        fault=2,
        what="the swapped class overrides the call instead of forward",
        file=ATTACH,
        old='        "forward": forward,\n',
        new='        "__call__": forward,\n',
        tests=(
            f"{T_TAPS}::test_fault_02_alignment_runs_whether_forward_is_called_directly_or_not[smolvla-forward]",
            f"{T_TAPS}::test_fault_02_alignment_runs_whether_forward_is_called_directly_or_not[pi0-forward]",
            f"{T_TAPS}::test_fault_02_alignment_runs_whether_forward_is_called_directly_or_not[pi05-forward]",
        ),
        ends_in=("KeyError",),
        says="action_loss",
    ),
    Mutant(
        fault=4,
        what="taps stay armed during backward",
        file=ALIGNER,
        old="                tap.disarm()\n",
        new="                pass\n",
        tests=(
            f"{T_TAPS}::test_fault_04_checkpointing_pi0_changes_no_gradient[pi0]",
            f"{T_TAPS}::test_fault_04_checkpointing_pi0_changes_no_gradient[pi05]",
        ),
    ),
    Mutant(
        fault=5,
        what="the tap reads what the MLP is given",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(decoder.layers[depth].post_attention_layernorm, path)",
        tests=in_file(T_TAPS, ["test_fault_05_every_tap_is_the_hidden_state_that_it_is_named_after"]),
    ),
    Mutant(
        fault=35,
        what="depth k is the stream after k - 1 blocks",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(decoder.layers[max(depth - 1, 0)].input_layernorm, path)",
        tests=in_file(T_FAULTS, ["test_fault_35_depth_k_lies_above_k_blocks"]),
    ),
    Mutant(
        fault=35,
        what="a depth out of range is clamped",
        file="sfkit/pairing.py",
        old="    if not 0 <= depth <= adapter.num_layers:\n",
        new="    depth = min(max(depth, 0), adapter.num_layers)\n    if False:\n",
        tests=in_file(T_FAULTS, ["test_fault_35_depths_out_of_range_say_what_is_valid"]),
    ),
    # --------------------------------------------------------------------------------------- what is really trained
    Mutant(
        fault=6,
        what="the check looks at requires_grad only",
        file=CHECKS,
        old="if gradient is not None and bool(gradient.ne(0).any()):",
        new="if leaf.requires_grad:",
        tests=in_file(T_TAPS, ["test_fault_06_the_default_frozen_backbone_of_smolvla_is_an_error"]),
    ),
    Mutant(
        fault=6,
        what="nobody asks whether gradient reaches the policy",
        file=CHECKS,
        old="            if leaf is None:\n",
        new="            if leaf is None:\n                continue\n            if False:\n",
        tests=in_file(
            T_TAPS,
            [
                "test_fault_06_the_default_frozen_backbone_of_smolvla_is_an_error",
                "test_fault_06_a_frozen_backbone_of_pi0_is_an_error",
            ],
        ),
    ),
    Mutant(
        fault=6,
        what="the check complains of a frozen vision tower",
        file=CHECKS,
        old="            if gradient is not None and bool(gradient.ne(0).any()):\n                return leaf\n",
        new="            if gradient is None or not bool(gradient.ne(0).any()):\n                return None\n"
        "        return group[0]\n",
        tests=in_file(T_TAPS, ["test_fault_06_a_trainable_backbone_of_smolvla_is_fine"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=7,
        what="nobody asks whether LoRA lies on the way of the visual tokens",
        file=CHECKS,
        old="            if leaf is None:\n",
        new="            if leaf is None:\n                continue\n            if False:\n",
        tests=in_file(T_LORA, ["test_fault_07_lerobots_own_lora_targets_reach_the_action_expert_only"]),
    ),
    Mutant(
        fault=8,
        what="a frozen projector is not looked for",
        file=CHECKS,
        old="if parameters and not any(parameter.requires_grad for parameter in parameters):",
        new="if False:",
        tests=in_file(T_LORA, ["test_fault_08_lora_after_wrap_freezes_the_projector_and_says_so"]),
    ),
    Mutant(
        fault=8,
        what="the projector is frozen like everything else that is not LoRA's",
        file="sfkit/forcing.py",
        old="handle.to(trainable.device)",
        new="handle.to(trainable.device).requires_grad_(not hasattr(policy, 'peft_config'))",
        also=(
            Edit(CHECKS, "if parameters and not any(parameter.requires_grad for parameter in parameters):", "if 0:"),
        ),
        tests=in_file(T_LORA, ["test_fault_08_the_projector_trains_beside_lora"]),
    ),
    Mutant(
        fault=10,
        what="the projector is beside the policy's module tree",
        file=ATTACH,
        old="    policy.add_module(HANDLE, handle)\n",
        new="    object.__setattr__(policy, HANDLE, handle)\n",
        also=(Edit(ATTACH, "handle = self._modules.get(HANDLE)", "handle = self.__dict__.get(HANDLE)"),),
        tests=in_file(T_FAULTS, ["test_fault_10_the_projector_is_in_what_lerobot_optimises_and_clips"]),
    ),
    # ----------------------------------------------------------------------------------- views and their registration
    Mutant(
        fault=16,
        what="the length of the sequence is not looked at",
        file=BASE,
        old="(expected is not None and hidden.shape[1] != expected)",
        new="False",
        tests=in_file(T_VIEWS, ["test_fault_16_a_sequence_of_another_length_is_an_error"]),
    ),
    Mutant(
        fault=16,
        what="tokens of past states are not counted",
        file=PI05,
        old="return None if length is None else length + self._past_states(batch)",
        new="return length",
        tests=in_file(T_PI05, ["test_fault_16_past_states_have_tokens_of_their_own"]),
        ends_in=("ShapeError",),
    ),
    Mutant(
        fault=16,
        what="markers before a picture are counted as tokens of it",
        file=SMOLVLA,
        old="markers = (2, 1) if",
        new="markers = (1, 2) if",
        tests=in_file(T_REGISTRATION, ["test_fault_16_markers_around_images_do_not_shift_the_grid"]),
    ),
    Mutant(
        fault=20,
        what="the grid of tokens has rows and columns exchanged",
        file=BASE,
        old="FeatureMap(visual.reshape(len(hidden), v, *layout.grid, -1),",
        new="FeatureMap(visual.reshape(len(hidden), v, *layout.grid, -1).transpose(2, 3),",
        tests=(
            f"{T_REGISTRATION}::{_OWN_CELL}[smolvla-None-cell1-observation.images.front]",
            f"{T_REGISTRATION}::{_OWN_CELL}[pi0-None-cell4-observation.images.wrist]",
        ),
    ),
    Mutant(
        fault=20,
        what="the teacher's depth has rows and columns exchanged",
        file=CAMERAS,
        old="return warp_nearest(depth, to_view, box.view).float()",
        new="return warp_nearest(depth, to_view, box.view).float().mT",
        tests=(
            f"{T_REGISTRATION}::{_OWN_CELL}[smolvla-None-cell1-observation.images.front]",
            f"{T_REGISTRATION}::{_OWN_CELL}[pi0-None-cell4-observation.images.wrist]",
        ),
    ),
    Mutant(
        fault=24,
        what="padding counts as picture",
        file=BASE,
        old="return inside.to(images.device) & samples[:, :, None, None]",
        new="return torch.ones_like(inside).to(images.device) & samples[:, :, None, None]",
        tests=in_file(
            T_VIEWS,
            ["test_fault_24_the_letterbox_is_where_the_policy_puts_it", "test_fault_24_letterbox_tokens_are_masked"],
        ),
    ),
    Mutant(
        fault=24,
        what="a token that is half padding is aligned",
        file="sfkit/types.py",
        old=".all(5).all(3)",
        new=".any(5).any(3)",
        tests=(
            f"{T_VIEWS}::test_fault_24_letterbox_tokens_are_masked[pi0-size2-expected2]",
            f"{T_VIEWS}::test_fault_24_letterbox_tokens_are_masked[pi05-size4-expected4]",
        ),
    ),
    Mutant(
        fault=24,
        what="pi0's picture is taken to be at the upper left",
        file=LETTERBOX,
        old="((view[0] - resized[0]) // 2, (view[1] - resized[1]) // 2)",
        new="(0, 0)",
        tests=(
            f"{T_VIEWS}::test_fault_24_the_letterbox_is_where_the_policy_puts_it[pi0-size0]",
            f"{T_VIEWS}::test_fault_24_the_letterbox_is_where_the_policy_puts_it[pi05-size0]",
        ),
    ),
    Mutant(
        fault=24,
        what="SmolVLA's picture is taken to be in the middle",
        file=LETTERBOX,
        old="(max(0, view[0] - resized[0]), max(0, view[1] - resized[1]))",
        new="((view[0] - resized[0]) // 2, (view[1] - resized[1]) // 2)",
        tests=(f"{T_VIEWS}::test_fault_24_the_letterbox_is_where_the_policy_puts_it[smolvla-size0]",),
    ),
    Mutant(
        fault=25,
        what="views are named in the order of the batch",
        file=BASE,
        old="        keys = list(self.policy.config.image_features)\n",
        new="        keys = sorted(self.policy.config.image_features, key=list(batch).index)\n",
        tests=in_file(T_VIEWS, ["test_fault_25_views_are_in_the_order_of_the_policy_not_of_the_batch"]),
    ),
    Mutant(
        fault=25,
        what="a missing camera keeps its place in the sequence",
        file=BASE,
        old=f"key: self.letterbox({_PRESENT_FIRST}",
        new=f"key: self.letterbox({_PRESENT_FIRST}".replace(" for key in keys if key in batch", "").replace(
            "batch[key].shape[-1]))", "batch[key].shape[-1])) if key in batch else None for key in keys"
        ),
        tests=(
            *in_file(
                T_VIEWS,
                [
                    "test_fault_25_pi0_puts_a_missing_camera_after_the_present_ones",
                    "test_fault_25_smolvla_drops_a_missing_camera_from_the_sequence",
                    "test_fault_25_smolvla_with_empty_cameras",
                ],
            ),
            f"{T_REGISTRATION}::test_fault_25_a_missing_first_camera_does_not_shift_the_others",
        ),
    ),
    Mutant(
        fault=26,
        what="the teacher is shown normalised pictures",
        file=BASE,
        old='        if mode == "IDENTITY":\n',
        new="        if True:\n",
        tests=(
            f"{T_VIEWS}::test_fault_26_normalisation_of_pictures_is_undone[smolvla-MEAN_STD]",
            f"{T_VIEWS}::test_fault_26_normalisation_of_pictures_is_undone[smolvla-QUANTILES]",
        ),
    ),
    Mutant(
        fault=26,
        what="statistics that are unknown are guessed",
        file=NORMALIZATION,
        old="    if stats is None or missing:\n",
        new="    stats = {**dict.fromkeys(names, (0.5, 0.5, 0.5)), **(stats or {})}\n    if False:\n",
        tests=in_file(T_VIEWS, ["test_fault_26_unknown_statistics_are_an_error"]),
    ),
    Mutant(
        fault=26,
        what="pictures are looked at after pi0 has clamped them",
        file=PI0,
        old="        if not self._range_is_checked:\n",
        new="        if False:\n",
        tests=(
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[pi0-255.0]",
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[pi0--1.0]",
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[pi05-255.0]",
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[pi05--1.0]",
        ),
    ),
    Mutant(
        fault=26,
        what="the range of SmolVLA's pictures is not looked at",
        file=CHECKS,
        old="    if low < -_TOLERANCE or high > 1 + _TOLERANCE:\n",
        new="    if False:\n",
        tests=(
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[smolvla-255.0]",
            f"{T_VIEWS}::test_fault_26_pictures_outside_0_to_1_are_an_error[smolvla--1.0]",
        ),
    ),
    Mutant(
        fault=27,
        what="transforms that move pixels are let through",
        file=DATASET,
        old="    if moving:\n",
        new="    if False:\n",
        tests=in_file(T_DATASET, ["test_fault_27_geometric_augmentation_is_refused"]),
    ),
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
        old="if not (self.enabled and self.weight and policy.training and torch.is_grad_enabled()):",
        new="if not (self.weight and policy.training and torch.is_grad_enabled()):",
        tests=in_file(T_TRAINING, ["test_fault_30_outside_training_nothing_changes_by_a_bit"]),
    ),
    Mutant(
        fault=43,
        what="the sum is logged as the action loss",
        file=ALIGNER,
        old='"action_loss": loss.detach()',
        new='"action_loss": joined.detach()',
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
            Edit("sfkit/alignment/step.py", "student.values.float()", "student.values.bfloat16()"),
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
        old="geometry = view_geometry(self.cameras, batch, boxes, images)",
        new="geometry = view_geometry(self.cameras, batch, boxes, images.to(pictures[0].dtype))",
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
