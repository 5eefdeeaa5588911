"""Mutants on real policies of LeRobot: taps, and what is really trained."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

BASE = "plugins/sfkit-lerobot/src/sfkit_lerobot/base.py"
ALIGNER = "sfkit/aligner.py"
ATTACH = "sfkit/attach.py"
CHECKS = "sfkit/alignment/checks.py"

T_FAULTS = "plugins/sfkit-lerobot/tests/test_faults.py"
T_LORA = "plugins/sfkit-lerobot/tests/test_lora.py"
T_TAPS = "plugins/sfkit-lerobot/tests/test_taps.py"
T_TOWER = "plugins/sfkit-lerobot/tests/test_tower.py"

_INPUT_NORM = "return TapPoint(decoder.layers[depth].input_layernorm, path)"

LEROBOT_TAPS = (
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
        )
        + in_file(T_TOWER, ["test_fault_06_a_frozen_tower_is_an_error_where_it_is_what_is_aligned"]),
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
)
