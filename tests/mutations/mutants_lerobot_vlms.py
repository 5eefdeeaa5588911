"""Mutants that tests of LeRobot's policies with a vision-language model must notice."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

_HERE = "plugins/sfkit-lerobot/src/sfkit_lerobot"
BASE = f"{_HERE}/base.py"
EVO1 = f"{_HERE}/evo1.py"
FRAMING = f"{_HERE}/framing.py"
GROOT = f"{_HERE}/groot.py"
MOLMOACT2 = f"{_HERE}/molmoact2.py"
PLACEHOLDERS = f"{_HERE}/placeholders.py"
QWEN = f"{_HERE}/qwen.py"
VLA_JEPA = f"{_HERE}/vla_jepa.py"
WALL_X = f"{_HERE}/wall_x.py"
XVLA = f"{_HERE}/xvla.py"
ALIGNER = "sfkit/aligner.py"
CHECKS = "sfkit/alignment/checks.py"

_TESTS = "plugins/sfkit-lerobot/tests"
T_ALL = f"{_TESTS}/vlms/test_all.py"
T_GROOT = f"{_TESTS}/vlms/test_groot.py"
T_EVO1 = f"{_TESTS}/vlms/test_evo1.py"
T_MOLMOACT2 = f"{_TESTS}/vlms/test_molmoact2.py"
T_JEPA = f"{_TESTS}/vlms/test_vla_jepa.py"
T_WALL_X = f"{_TESTS}/vlms/test_wall_x.py"
T_XVLA = f"{_TESTS}/vlms/test_xvla.py"
T_TAPS = f"{_TESTS}/test_taps.py"

_INPUT_NORM = "return TapPoint(decoder.layers[depth].input_layernorm, path)"
_SEEN = f"{T_ALL}::test_fault_24_and_26_the_view_is_what_the_policy_sees_in_its_place"

LEROBOT_VLMS = (
    # ------------------------------------------------------------------------------------------- for all of them
    Mutant(
        fault=1,
        what="the tap of a policy with placeholders is on the policy object",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(self.policy, path)",
        tests=in_file(T_ALL, ["test_fault_01_taps_fire_once_and_their_paths_lead_to_them"]),
    ),
    Mutant(
        fault=35,
        what="with placeholders, depth k is the stream after k - 1 blocks",
        file=BASE,
        old=_INPUT_NORM,
        new="return TapPoint(decoder.layers[max(depth - 1, 0)].input_layernorm, path)",
        tests=in_file(T_ALL, ["test_fault_35_depth_k_lies_above_k_blocks"]),
    ),
    Mutant(
        fault=6,
        what="the error does not name the option of the policy",
        file=CHECKS,
        old="{f' ({unfreeze})' if unfreeze else ''}",
        new="",
        tests=in_file(T_ALL, ["test_fault_06_what_lerobot_freezes_is_an_error_that_names_the_option"]),
    ),
    Mutant(
        fault=6,
        what="nobody asks whether gradient reaches pi0-FAST",
        file=CHECKS,
        old="            if leaf is None:\n",
        new="            if leaf is None:\n                continue\n            if False:\n",
        tests=in_file(T_TAPS, ["test_fault_06_pi0_fast_trains_its_backbone_by_default_and_says_so_when_frozen"]),
    ),
    Mutant(
        fault=16,
        what="the length of the prompt is not looked at",
        file=PLACEHOLDERS,
        old="        if tuple(hidden.shape[:2]) != tuple(prompt.ids.shape):\n",
        new="        if False:\n",
        tests=(f"{T_ALL}::test_fault_16_a_sequence_of_another_length_is_an_error[groot]",),
    ),
    Mutant(
        fault=20,
        what="the grid of placeholders has rows and columns exchanged",
        file=PLACEHOLDERS,
        old="FeatureMap(visual.reshape(b, v, gh, gw, -1),",
        new="FeatureMap(visual.reshape(b, v, gw, gh, -1).transpose(2, 3),",
        tests=(f"{T_ALL}::test_fault_20_and_25_a_patch_moves_its_own_token_and_its_own_feature[groot-None]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=25,
        what="the views of a prompt are taken from its end",
        file=PLACEHOLDERS,
        old="descending=True, stable=True)",
        new="descending=True, stable=True).roll(-gh * gw, 1)",
        tests=(f"{T_ALL}::test_fault_20_and_25_a_patch_moves_its_own_token_and_its_own_feature[groot-None]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=30,
        what="`disabled` does not disable policies with a vision-language model",
        file=ALIGNER,
        old="if not (self.enabled and self.weight and trains):",
        new="if not (self.weight and trains):",
        also=(Edit(ALIGNER, "if not (self.enabled or in_a_group()):", "if False:"),),
        tests=in_file(T_ALL, ["test_fault_30_outside_training_nothing_changes_by_a_bit"]),
    ),
    Mutant(
        fault=10,
        what="nobody asks whether the optimizer moves the projector of VLA-JEPA",
        file=CHECKS,
        old="        return False if self.steps >= 2 else None",
        new="        return None",
        tests=in_file(T_ALL, ["test_fault_10_an_optimizer_that_is_not_told_of_the_projector_is_an_error"]),
    ),
    Mutant(
        fault=16,
        what="the views of all samples are where those of the first are",
        file=PLACEHOLDERS,
        old="descending=True, stable=True)",
        new="descending=True, stable=True)[:1].expand(b, -1)",
        tests=in_file(T_ALL, ["test_fault_16_prompts_of_different_lengths_hold_their_views_in_different_places"]),
    ),
    # ----------------------------------------------------------------------------------------------------- GR00T
    Mutant(
        fault=24,
        what="the view of GR00T is taken for the whole picture",
        file=GROOT,
        old="framing.placed((side, side), -corner, -corner)",
        new="framing",
        tests=(f"{_SEEN}[groot]",),
    ),
    Mutant(
        fault=24,
        what="what lies beyond the picture counts as picture",
        file=FRAMING,
        old="return warp_nearest(torch.ones(1, *self.source), self.matrix, self.view)[0].bool()",
        new="return torch.ones(self.view, dtype=torch.bool)",
        tests=in_file(T_GROOT, ["test_fault_24_the_letterbox_is_masked"]),
    ),
    Mutant(
        fault=25,
        what="the cameras of GR00T are in the order of the configuration",
        file=GROOT,
        old="return tuple(self._order._ordered_image_keys(dict.fromkeys(cameras)))",
        new="return tuple(cameras)",
        tests=in_file(T_GROOT, ["test_fault_25_views_are_in_the_order_that_the_checkpoint_names"]),
    ),
    Mutant(
        fault=25,
        what="nobody counts the pictures in GR00T's prompts",
        file=GROOT,
        old="        if len(pictures) % (b * v):\n",
        new="        if False:\n",
        tests=in_file(T_GROOT, ["test_fault_25_cameras_that_do_not_fit_the_prompt_are_an_error"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=26,
        what="the teacher is shown pictures as Qwen's processor has normalised them",
        file=QWEN,
        old="return pictures * scale + shift",
        new="return pictures",
        tests=(f"{_SEEN}[groot]",),
    ),
    Mutant(
        fault=26,
        what="the range of GR00T's pictures is not looked at",
        file=CHECKS,
        old="    if low < -_TOLERANCE or high > 1 + _TOLERANCE:\n",
        new="    if False:\n",
        tests=in_file(T_GROOT, ["test_fault_26_other_values_of_the_image_processor_are_an_error"]),
    ),
    Mutant(
        fault=27,
        what="a random crop is passed over in silence",
        file=GROOT,
        old="        if self.cameras is not None:\n",
        new="        if False:\n",
        tests=in_file(T_GROOT, ["test_fault_27_a_random_crop_leaves_no_geometry"]),
    ),
    # ------------------------------------------------------------------------------------------- X-VLA, VLA-JEPA
    Mutant(
        fault=20,
        what="X-VLA's token for the whole view is taken for its first patch",
        file=XVLA,
        old=", before=1)",
        new=", after=1)",
        tests=(f"{T_ALL}::test_fault_20_and_25_a_patch_moves_its_own_token_and_its_own_feature[xvla-None]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=24,
        what="X-VLA's views are taken to be padded around",
        file=XVLA,
        old="pad_top_left(source, (int",
        new="pad_around(source, (int",
        also=(Edit(XVLA, "Size, pad_top_left, unchanged", "Size, pad_around, unchanged"),),
        tests=in_file(T_XVLA, ["test_fault_24_the_letterbox_is_masked_and_black"]),
    ),
    Mutant(
        fault=25,
        what="X-VLA's last view is aligned",
        file=XVLA,
        old="[images[:, 0] * 2 - 1]",
        new="[images[:, -1] * 2 - 1]",
        tests=in_file(T_XVLA, ["test_fault_25_the_first_camera_of_the_batch_is_the_one_that_is_aligned"]),
    ),
    Mutant(
        fault=26,
        what="pictures that nobody normalised are taken for normalised ones",
        file=XVLA,
        old="            self._refuse_pictures_as_they_were(batch, present)\n",
        new="",
        tests=in_file(T_XVLA, ["test_fault_26_pictures_that_nobody_normalised_are_an_error"]),
    ),
    Mutant(
        fault=25,
        what="VLA-JEPA's views are named in the order of the batch",
        file=VLA_JEPA,
        old="names = list(self.policy.config.image_features)",
        new="names = [key for key in batch if key in self.policy.config.image_features]",
        tests=in_file(T_JEPA, ["test_fault_25_views_are_in_the_order_of_the_policy"]),
    ),
    Mutant(
        fault=26,
        what="VLA-JEPA's pictures may be normalised twice",
        file=VLA_JEPA,
        old='        if visual_mode(self.policy.config) != "IDENTITY":\n',
        new="        if False:\n",
        tests=in_file(T_JEPA, ["test_fault_26_pictures_normalised_twice_are_an_error"]),
    ),
    # ------------------------------------------------------------------------------------------------------ EVO1
    Mutant(
        fault=25,
        what="a missing camera of EVO1 keeps its place in the prompt",
        file=EVO1,
        old="return {**boxes, **{key: None for key in keys if key not in batch}}",
        new="return {key: boxes.get(key) for key in keys}",
        tests=in_file(T_EVO1, ["test_fault_23_and_25_a_missing_camera_comes_behind_the_others_and_is_masked"]),
    ),
    Mutant(
        fault=6,
        what="the check complains of a branch of EVO1 that is frozen on purpose",
        file=CHECKS,
        old="    for group in (leaves[:_NEAREST], leaves[_NEAREST:]):\n",
        new="    for group in ():\n",
        tests=in_file(T_EVO1, ["test_fault_06_one_trainable_branch_is_enough"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=4,
        what="taps stay armed while checkpoints of EVO1 and MolmoAct2 are recomputed",
        file=ALIGNER,
        old="                tap.disarm()\n",
        new="                pass\n",
        tests=tuple(
            f"{file}::test_fault_03_and_04_checkpointing_changes_no_gradient" for file in (T_EVO1, T_MOLMOACT2)
        ),
    ),
    Mutant(
        fault=26,
        what="pictures are looked at after EVO1 has clamped them",
        file=EVO1,
        old='                refuse_out_of_range(picture, key, "EVO1")\n',
        new="                pass\n",
        tests=in_file(T_EVO1, ["test_fault_26_pictures_that_evo1_would_clamp_are_an_error"]),
    ),
    # ---------------------------------------------------------------------------------------------------- Wall-X
    Mutant(
        fault=25,
        what="Wall-X's views are named in the order of the batch",
        file=WALL_X,
        old="names = [name for name in self.policy.config.image_features if name in batch]",
        new="names = [name for name in batch if name in self.policy.config.image_features]",
        tests=in_file(T_WALL_X, ["test_fault_25_a_missing_camera_is_not_in_the_prompt"]),
    ),
    Mutant(
        fault=26,
        what="pictures are looked at after Wall-X has made them 8 bits",
        file=WALL_X,
        old='                refuse_out_of_range(batch[name], name, "Wall-X")\n',
        new="                pass\n",
        tests=in_file(T_WALL_X, ["test_fault_26_pictures_that_wall_x_would_wrap_around_are_an_error"]),
    ),
    # ------------------------------------------------------------------------------------------------- MolmoAct2
    Mutant(
        fault=35,
        what="depth k of MolmoAct2 is the stream after k - 1 blocks",
        file=MOLMOACT2,
        old="return TapPoint(self.decoder.blocks[depth], ",
        new="return TapPoint(self.decoder.blocks[max(depth - 1, 0)], ",
        tests=(f"{T_ALL}::test_fault_35_depth_k_lies_above_k_blocks[molmoact2]",),
    ),
    Mutant(
        fault=24,
        what="MolmoAct2's half-empty tokens are taken for whole ones",
        file=MOLMOACT2,
        old="resized(size).placed(self._view, *self._corner)",
        new="resized(self._view)",
        tests=in_file(T_MOLMOACT2, ["test_fault_24_tokens_that_are_half_empty_are_masked"]),
    ),
    Mutant(
        fault=20,
        what="the tokens of crops are taken for those of the next view",
        file=PLACEHOLDERS,
        old="        if any(prompt.behind):\n",
        new="        mine = mine[:, : v * gh * gw]\n        if False:\n",
        tests=in_file(T_MOLMOACT2, ["test_fault_20_of_a_picture_in_crops_the_whole_is_aligned"]),
    ),
    Mutant(
        fault=25,
        what="nobody looks whether MolmoAct2's prompt shows the cameras in another order",
        file=MOLMOACT2,
        old="        if bool((apart.diagonal() > ",
        new="        if False and bool((apart.diagonal() > ",
        tests=in_file(T_MOLMOACT2, ["test_fault_25_views_in_another_order_than_the_prompt_are_an_error"]),
    ),
    Mutant(
        fault=25,
        what="nobody counts the pictures in MolmoAct2's prompts",
        file=MOLMOACT2,
        old="        if len(shown) != b * v:\n",
        new="        if False:\n",
        tests=in_file(T_MOLMOACT2, ["test_fault_25_a_missing_camera_is_an_error_that_says_how_to_name_the_others"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=26,
        what="pictures are looked at after MolmoAct2 has clipped them",
        file=MOLMOACT2,
        old='            refuse_out_of_range(picture, name, "MolmoAct2")\n',
        new="            pass\n",
        tests=in_file(T_MOLMOACT2, ["test_fault_26_pictures_that_molmoact2_would_clip_are_an_error"]),
    ),
    Mutant(
        fault=7,
        what="the adapter does not know the model that MolmoAct2's own LoRA puts around",
        file=MOLMOACT2,
        old='"base_model.model." if hasattr(self.policy.model, "peft_config") else ""',
        new='""',
        tests=in_file(T_MOLMOACT2, ["test_fault_07_its_own_lora_is_reached"]),
        ends_in=("AttributeError",),
    ),
)
