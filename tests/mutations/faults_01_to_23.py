"""Mutants of faults 1 to 23: taps, gradients, the joined loss, token grids and masks."""

from __future__ import annotations

from mutant import Mutant
from operators import (
    drop_call,
    drop_raise,
    fix_condition,
    replace_argument,
    replace_call,
    replace_constant,
    replace_return,
)

_BLOCK = replace_argument("TapPoint", 0, "self.policy.blocks[0]", mentions="input_layernorm")
_OUTPUT = replace_call(
    "register_forward_pre_hook", "_self.register_forward_hook(lambda *given: self.capture(given[0], given[2:], {}))"
)
_OWN_TOKEN = "test_fault_16_20_a_patch_moves_its_own_token_and_feature[standin-pi0]"
_OPENVLA_SUM = "test_fault_03_04_13_the_scripts_loss_trains_the_explicit_sum"
_OPENVLA_TOKEN = "test_fault_16_20_25_every_patch_moves_its_own_token"
_RELEASED = "test_fault_16_18_target_loss_gradients_equal_released_code[own]"
_RESAMPLED = "test_fault_17_and_18_cell_centers_stay_where_they_are"
_UNKNOWN_TO_DDP = replace_call(
    "add_module",
    "(_, setattr(policy, '_ddp_params_and_buffers_to_ignore', "
    "[f'{HANDLE}.{name}' for name, one in handle.named_parameters()]))",
)

# fmt: off
LOW = (
    # 1: a tap on a module that the policy never calls
    Mutant(1, "TinyAdapter.tap", _BLOCK, "test_fault_01_the_tap_fires_whether_or_not_blocks_are_called",
           ends_in="TapError"),
    Mutant(1, "LeRobotAdapter.tap",
           replace_argument("TapPoint", 0, "self.decoder.layers[0]", mentions="input_layernorm"),
           "test_fault_01_and_02_taps_fire_once_in_each_forward[smolvla-forward]"),
    Mutant(1, "OpenPIAdapter.tap", replace_call("get_submodule", "_self.get_submodule(_DECODER).layers[0]"),
           "test_fault_01_taps_fire_once_where_block_hooks_are_silent[standin-pi0]"),
    Mutant(1, "Candidate.choose_taps", fix_condition(True, "count", within="append"),
           "test_fault_01_what_never_fires_is_shown", ends_in=("KeyError", "AttributeError")),
    # 2: the trainer calls forward, past the call
    Mutant(2, "Aligner._attach", drop_call("apply_defaults"),
           "test_fault_02_the_adapter_sees_arguments_left_at_their_default", ends_in=("KeyError",)),
    Mutant(2, "forced_class", replace_constant("forward", "__call__"),
           "test_fault_02_calling_forward_directly_aligns_as_well",
           "test_fault_02_alignment_runs_by_call_and_by_forward[smolvla-forward]",
           "test_fault_02_alignment_runs_in_every_trainer_step", ends_in="KeyError",
           says="_loss"),
    # 3, 4: activation checkpoints
    Mutant(3, "SelfCheck.captured", fix_condition(True, "reaches_policy"),
           "test_fault_03_a_tap_in_a_reentrant_checkpoint_is_an_error"),
    Mutant(3, "Tap.__init__", _OUTPUT, f"{_OPENVLA_SUM}[openvla-reentrant]", ends_in="GradientError"),
    Mutant(3, "Taps.run", drop_call("disarm"),
           "test_fault_03_and_04_checkpointing_evo1_changes_no_gradient"),
    Mutant(4, "Taps.run", drop_call("disarm"),
           "test_fault_04_activation_checkpointing_changes_no_gradient",
           "test_fault_04_checkpointing_pi0_changes_no_gradient[pi0]",
           "test_fault_04_nested_checkpoints_are_captured_once[standin-pi0]",
           f"{_OPENVLA_SUM}[openvla-checkpointed]"),
    Mutant(4, "Tap.capture", fix_condition(True, "hidden"), "test_fault_04_the_first_firing_is_kept"),
    Mutant(4, "is_recompute_forward", replace_return("False"),
           "test_fault_04_a_policy_that_is_checkpointed_as_a_whole"),
    # 5: the tapped output is changed in place afterwards
    Mutant(5, "Tap.__init__", _OUTPUT, "test_fault_05_35_layer_k_is_the_stream_after_k_blocks",
           "test_fault_05_every_tap_is_the_hidden_state_of_its_name[smolvla]"),
    # 6, 7, 8: nothing of the policy, or of the projector, is trained
    Mutant(6, "find_trained_leaf", fix_condition(True, "ne"),
           "test_fault_06_a_frozen_backbone_is_an_error_although_the_tap_requires_grad",
           "test_fault_06_smolvlas_frozen_backbone_is_an_error"),
    Mutant(6, "sfkit_tools.capture.trains_policy", replace_call("find_trained_leaf", "_0"),
           "test_fault_06_a_frozen_backbone_is_shown"),
    Mutant(7, "SelfCheck.captured", fix_condition(True, "reaches_policy"),
           "test_fault_07_lora_that_misses_the_visual_path_is_an_error",
           "test_fault_07_lerobots_lora_targets_are_an_error"),
    Mutant(7, "SfPolicy.wrap_with_peft", drop_call("require"),
           "test_fault_07_expert_only_targets_are_refused"),
    Mutant(8, "SelfCheck.captured", drop_call("_check_projectors"),
           "test_fault_08_a_projector_frozen_after_the_wrap_is_an_error",
           "test_fault_08_lora_after_the_wrap_is_found_out",
           "test_fault_08_lora_after_wrap_is_an_error"),
    Mutant(8, "SfPolicy.get_optim_params", replace_call("with_projector", "_0"),
           "test_fault_08_the_projector_is_trained_and_saved", ends_in="GradientError"),
    # 9, 10: the optimizer does not know the projector
    Mutant(9, "OptimizerWatch.projector_moved", replace_return("None", mentions="steps"),
           "test_fault_09_an_optimizer_built_before_wrap_is_found_out"),
    Mutant(10, "OptimizerWatch.projector_moved", replace_return("None", mentions="steps"),
           "test_fault_10_parameter_groups_without_the_projector_are_found_out",
           "test_fault_10_diffusion_without_projector_is_an_error"),
    Mutant(10, "SfPolicy.get_optim_params",
           replace_return("[one for name, one in self.named_parameters() if 'spatial_forcing' not in name]"),
           "test_fault_10_the_projector_is_in_the_optimizer_and_moves", ends_in="GradientError"),
    # 11, 12: DDP
    Mutant(11, "attach.attach", _UNKNOWN_TO_DDP, "test_fault_11_parameters_are_equal_on_both_ranks",
           "test_fault_11_gradients_of_the_projector_are_averaged"),
    Mutant(12, "ManualPath.keep_in_graph", replace_call("inject", "None"),
           "test_fault_12_and_49_gradients_are_the_mean_of_the_ranks", says="Expected to have finished reduction"),
    Mutant(12, "ManualPath.attach", replace_argument("inject", 1, "_.detach()"),
           "test_fault_12_lora_film_ddp_and_an_optimizer[oft-l1-film]", ends_in="GradientError"),
    # 13: the loop does not read the loss that forward returns
    Mutant(13, "LossPaths.of", fix_condition(True, "reads_loss"), "test_fault_13_plain",
           f"{_OPENVLA_SUM}[oft-l1-plain]"),
    Mutant(13, "LossPaths.__init__", drop_raise("ConfigError"),
           "test_fault_13_a_loss_that_nobody_reads_is_no_place_to_join",
           "test_fault_13_the_loss_that_oft_does_not_read_is_refused"),
    Mutant(13, "LossPaths.start_step", drop_raise("LossError"),
           "test_fault_13_add_that_is_never_called_is_noticed_at_the_second_step"),
    # 14, 15: the loop scales, divides or sums its loss
    Mutant(14, "LossScale.gradient", replace_return("_ * (self.accumulation or 1)"), "test_fault_14_accumulated",
           "test_fault_14_accumulation_and_mixed_precision", "test_fault_14_accumulated_batches_count_as_one[oft-l1]"),
    Mutant(14, "LossScale.gradient", fix_condition(True, "scaler"), "test_fault_14_scaled",
           "test_fault_14_the_scaler_of_the_loop_is_followed[oft-l1]"),
    Mutant(14, "LossScale.check_backward", drop_call("_warn"),
           "test_fault_14_accumulation_that_was_not_told_is_warned_of_once"),
    Mutant(15, "warn_if_sum_reduction", drop_call("register_hook"), "test_fault_15_a_sum_is_warned_of",
           "test_fault_15_a_sum_over_elements_is_reported"),
    # 16: a token span that is off by one
    Mutant(16, "AdapterOptions", replace_constant(0, 1, within=("token_shift", "default")),
           "test_fault_16_a_token_shift_cuts_one_place_too_late"),
    Mutant(16, "alignment_loss._Adapter.visual_tokens", replace_argument("cut", 3, "0"), _RELEASED),
    Mutant(16, "sfkit_tools.Found.patches", replace_return("self.positions[:, :, 1:].flatten(1)"),
           "test_fault_16_20_tokens_are_those_that_move_with_the_images"),
    Mutant(16, "PI05Adapter._past_states", replace_return("0", mentions="shape"),
           "test_fault_16_past_states_have_tokens_of_their_own", ends_in="ShapeError"),
    Mutant(16, "OpenPIAdapter.visual_tokens", replace_constant(0, 1, within="cut"), _OWN_TOKEN,
           ends_in="CorrespondenceError"),
    Mutant(16, "OpenVLAAdapter.visual_tokens", replace_constant(1, 2, within="cut"),
           f"{_OPENVLA_TOKEN}[oft-l1-2-False]", "test_fault_16_only_the_shift_includes_the_proprio_token[0]",
           ends_in="CorrespondenceError"),
    # 17, 18: resampling by a ratio, or with aligned corners
    Mutant(17, "ResampleOptions", replace_constant(False, True, within=("scale_factor", "default")),
           "test_fault_17_scale_factor_alone_misses_some_grids", ends_in="ShapeError"),
    Mutant(18, "resample._interpolate", replace_constant(False, True, within="align_corners"), _RESAMPLED),
    Mutant(18, "_corners_aligned", replace_constant(True, False, within="align_corners"), _RELEASED),
    # 19: a grid that is not square
    Mutant(19, "place", fix_condition(True, "stretch"), "test_fault_19_a_view_that_is_not_square_keeps_its_aspect",
           "test_fault_19_a_wide_view_reaches_the_students_own_grid",
           "test_fault_19_a_wide_view_keeps_its_rows_and_columns",
           "test_fault_19_oblong_images_give_oblong_grids[dinov2]",
           "test_fault_19_an_oblong_teacher_grid_fits_a_square_student"),
    Mutant(19, "official_placement", replace_return("Placement(_.canvas, _.canvas)"),
           "test_fault_19_official_crops_are_masked_the_rest_in_place"),
    # 20: rows and columns are exchanged
    Mutant(20, "_gather_cells", replace_call("permute", "_self.permute(0, 1, 4, 2, 3, 5, 6)"),
           "test_fault_20_tiny_corresponds[geometry]", ends_in="CorrespondenceError"),
    Mutant(20, "_expect_most", replace_call("all", "True"), "test_fault_20_exchanged_axes_are_found"),
    Mutant(20, "generic.tokens.cut", replace_argument("FeatureMap", 0, "_.transpose(2, 3)"),
           "test_fault_16_20_image_tokens_are_found_by_id", ends_in=("CorrespondenceError", "ShapeError")),
    Mutant(20, "sfkit_tools._with_grid", replace_argument("_hit", 2, "(_[2], _[3], _[0], _[1])"),
           "test_fault_16_20_tokens_are_those_that_move_with_the_images"),
    Mutant(20, "ImageTokenAdapter.visual_tokens", replace_argument("FeatureMap", 0, "_.transpose(2, 3)"),
           "test_fault_20_and_25_a_patch_moves_its_token_and_feature[groot-None]",
           ends_in="CorrespondenceError"),
    Mutant(20, "OpenPIAdapter.visual_tokens", replace_argument("FeatureMap", 0, "_.transpose(2, 3)"), _OWN_TOKEN,
           ends_in="CorrespondenceError"),
    Mutant(20, "OpenVLAAdapter.visual_tokens", replace_argument("FeatureMap", 0, "_.transpose(2, 3)"),
           f"{_OPENVLA_TOKEN}[openvla-1-False]", ends_in="CorrespondenceError"),
    Mutant(20, "scaled_positions", replace_argument("interpolate", "scale_factor", "_[::-1]"),
           "test_fault_20_learned_positions_keep_rows_and_columns_apart"),
    Mutant(20, "PairBackbone._table", replace_call("grid_positions", "_.flip(1)"),
           "test_fault_20_tokens_rotate_by_row_then_column"),
    Mutant(20, "backbone.Backbone._patches", replace_return("tokens[:, : rows * columns]"),
           "test_fault_20_a_changed_patch_moves_its_own_feature_most[square-vit]"),
    Mutant(20, "PatchConv.forward", replace_call("flatten", "_self.mT.flatten(2)"),
           "test_fault_20_recorded_outputs_are_given_again"),
    # 21, 22: masked tokens, and samples without others
    Mutant(21, "pair._select", replace_return("values.float() * mask.unsqueeze(-1)", mentions="where"),
           "test_fault_21_nan_in_masked_tokens_reaches_neither_loss_nor_gradient",
           "test_fault_21_nan_in_masked_tokens_reaches_no_objective"),
    Mutant(21, "FeatureMap.sanitized", replace_return("FeatureMap(self.values * self.mask.unsqueeze(-1), self.mask)"),
           "test_fault_21_nan_where_a_masked_teacher_is_resampled"),
    Mutant(22, "masked_mean", replace_call("clamp", "_self"),
           "test_fault_22_a_sample_without_a_valid_token_contributes_zero"),
    # 23: an absent camera is shown to the teacher
    Mutant(23, "TeacherRunner.features", fix_condition(True, "drops_absent"),
           "test_fault_23_an_absent_view_never_touches_a_real_one",
           "test_fault_23_an_absent_view_changes_nothing_in_real_ones",
           "test_fault_23_a_blank_camera_never_touches_real_ones", ends_in="ComponentError"),
    Mutant(23, "Evo1Adapter._boxes",
           replace_return("{camera: _[camera] for camera in self.policy.config.image_features}"),
           "test_fault_23_and_25_a_missing_camera_is_last_and_masked"),
    Mutant(23, "OpenPIAdapter._present", replace_call("get", "_1"),
           "test_fault_23_an_absent_camera_changes_no_loss_or_gradient"),
)
