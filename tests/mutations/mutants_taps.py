"""Mutants of the tap, the swapped class and the self-check: what is read, and what is really trained."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

ALIGNER = "sfkit/aligner.py"
ATTACH = "sfkit/attach.py"
CHECKS = "sfkit/alignment/checks.py"
TAP = "sfkit/alignment/tap.py"
PAIRING = "sfkit/pairing.py"
POLICIES = "sfkit/testing/policies.py"

T_CHECKS = "tests/alignment/test_checks.py"
T_TAP = "tests/alignment/test_tap.py"
T_TRAINING = "tests/test_training.py"
T_WRAP = "tests/test_wrap.py"

_TAP_ARM = "self.armed, self.fired, self.hidden, self._later = True, 0, None, []"
_TAP_DISARM = "self.armed, self.hidden, self._later = False, None, []"
_TAP_TAKE = "hidden, later, self.hidden, self._later = self.hidden, self._later, None, []"

TAPS = (
    # ------------------------------------------------------------------------------ the tap and the swapped class
    Mutant(
        fault=1,
        what="a tap that never fired is passed over",
        file=ALIGNER,
        old="            hidden = {depth: tap.take() for depth, tap in self.taps.items()}\n",
        new="            hidden = {d: tap.take() for d, tap in self.taps.items() if tap.hidden is not None}\n"
        "            if not hidden:\n"
        "                return output\n",
        tests=in_file(T_WRAP, ["test_fault_01_a_silent_tap_is_an_error_and_the_next_step_works"]),
    ),
    Mutant(
        fault=1,
        what="the tap is on the decoder block, which the policy need not call",
        file=POLICIES,
        old="return TapPoint(block.input_layernorm,",
        new="return TapPoint(block,",
        tests=in_file(T_WRAP, ["test_fault_01_the_tap_fires_whether_or_not_blocks_are_called"]),
        ends_in=("TapError",),
    ),
    Mutant(
        fault=2,
        what="the swapped class overrides the call instead of forward",
        file=ATTACH,
        old='        "forward": forward,\n',
        new='        "__call__": forward,\n',
        tests=in_file(T_WRAP, ["test_fault_02_calling_forward_directly_aligns_as_well"]),
        ends_in=("KeyError",),
        says="sf_loss",
    ),
    Mutant(
        fault=4,
        what="taps stay armed during backward",
        file=ALIGNER,
        old="                tap.disarm()\n",
        new="                pass\n",
        tests=in_file(T_TRAINING, ["test_fault_04_activation_checkpointing_changes_no_gradient"]),
    ),
    Mutant(
        fault=4,
        what="a second firing overwrites the first",
        file=TAP,
        old="            if self.hidden is None:\n",
        new="            if True:\n",
        tests=in_file(T_TAP, ["test_fault_04_the_first_firing_is_kept"]),
    ),
    Mutant(
        fault=5,
        what="the tap reads what its module returns, not what it is given",
        file=TAP,
        old="point.module.register_forward_pre_hook(self.capture, with_kwargs=True)",
        new="point.module.register_forward_hook(lambda module, args, output: self.capture(module, (output,), {}))",
        tests=in_file(T_WRAP, ["test_fault_05_35_depth_k_is_the_stream_after_k_blocks"]),
    ),
    Mutant(
        fault=5,
        what="the tap reads the output of the MLP, to which the residual is added in place afterwards",
        file=TAP,
        old="point.module.register_forward_pre_hook(self.capture, with_kwargs=True)",
        new="point.module.register_forward_hook(lambda module, args, output: self.capture(module, (output,), {}))",
        also=(
            Edit(
                POLICIES,
                'return TapPoint(block.input_layernorm, f"blocks.{depth}.input_layernorm")',
                'return TapPoint(self.policy.blocks[depth].mlp, f"blocks.{depth}.mlp")',
            ),
        ),
        tests=in_file(T_WRAP, ["test_fault_05_35_depth_k_is_the_stream_after_k_blocks"]),
    ),
    Mutant(
        fault=35,
        what="depth k is the stream after k + 1 blocks",
        file=POLICIES,
        old="        block = self.policy.blocks[depth]\n",
        new="        block = self.policy.blocks[min(depth + 1, self.num_layers - 1)]\n",
        tests=in_file(T_WRAP, ["test_fault_05_35_depth_k_is_the_stream_after_k_blocks"]),
    ),
    Mutant(
        fault=35,
        what="a depth out of range is clamped",
        file=PAIRING,
        old="    if not 0 <= depth <= adapter.num_layers:\n",
        new="    depth = min(max(depth, 0), adapter.num_layers)\n    if False:\n",
        tests=in_file(T_WRAP, ["test_fault_35_depths_out_of_range_say_what_is_valid"]),
    ),
    Mutant(
        fault=35,
        what="a teacher's layer may be counted from the end",
        file=PAIRING,
        old="    if not 1 <= layer <= teacher.num_layers:\n",
        new="    if layer > teacher.num_layers:\n",
        tests=(
            f"{T_WRAP}::test_fault_35_layers_out_of_range_say_what_is_valid[-1]",
            f"{T_WRAP}::test_fault_35_layers_out_of_range_say_what_is_valid[0]",
        ),
    ),
    Mutant(
        fault=35,
        what="a saved configuration may hold a negative depth",
        file="sfkit/config.py",
        old="if not isinstance(value, str) and value < 0:",
        new="if False:",
        tests=("tests/test_config.py::test_fault_35_negative_depths_do_not_exist",),
    ),
    Mutant(
        fault=39,
        what="taps keep what they captured",
        file=TAP,
        old=_TAP_TAKE,
        new="hidden, later = self.hidden, self._later",
        also=(Edit(TAP, _TAP_DISARM, "self.armed = False"),),
        tests=(
            f"{T_TRAINING}::test_fault_39_no_graph_stays_alive_between_steps",
            f"{T_TAP}::test_fault_39_a_tap_forgets",
        ),
    ),
    Mutant(
        fault=39,
        what="the figures kept for the log hold on to the graph",
        file=ALIGNER,
        old='"sf_loss": result.loss.detach().mean(),',
        new='"sf_loss": result.loss.mean(),',
        also=(Edit(POLICIES, "float(value) for key", "float(value.detach()) for key"),),
        tests=in_file(T_TRAINING, ["test_fault_39_no_graph_stays_alive_between_steps"]),
    ),
    Mutant(
        fault=45,
        what="the hook is registered for each forward and removed after it",
        file=TAP,
        old=_TAP_ARM,
        new=_TAP_ARM
        + "\n        self._handle = self._module.register_forward_pre_hook(self.capture, with_kwargs=True)",
        also=(
            Edit(
                TAP,
                "_handle: RemovableHandle = point.module.register_forward_pre_hook(self.capture, with_kwargs=True)",
                "_module = point.module",
            ),
            Edit(TAP, _TAP_DISARM, _TAP_DISARM + "\n        self._handle.remove()"),
        ),
        tests=(
            "tests/test_compile.py::test_fault_45_every_step_of_a_compiled_policy_aligns[module]",
            "tests/test_compile.py::test_fault_45_every_step_of_a_compiled_policy_aligns[method]",
            "tests/test_compile.py::test_fault_45_every_step_of_a_compiled_policy_aligns[inner]",
        ),
        ends_in=("TapError",),
    ),
    Mutant(
        fault=45,
        what="a tap that never fired is passed over, in a policy whose layers are compiled",
        file=ALIGNER,
        old="            hidden = {depth: tap.take() for depth, tap in self.taps.items()}\n",
        new="            hidden = {d: tap.take() for d, tap in self.taps.items() if tap.hidden is not None}\n"
        "            if not hidden:\n"
        "                return output\n",
        tests=("tests/test_compile.py::test_fault_45_layers_compiled_one_by_one_are_never_silently_untapped",),
        ends_in=("KeyError",),
        says="sf_loss",
    ),
    Mutant(
        fault=46,
        what="a forward of the object's own, which hides the class's, is not looked for",
        file=ATTACH,
        old='    if "forward" in vars(policy):\n',
        new="    if False:\n",
        tests=in_file(
            T_WRAP,
            ["test_fault_46_an_accelerate_prepared_policy_is_refused", "test_fault_46_the_real_accelerate"],
        ),
    ),
    # ---------------------------------------------------------------------------------------------- the self-check
    Mutant(
        fault=6,
        what="the check looks at requires_grad only",
        file=CHECKS,
        old="if gradient is not None and bool(gradient.ne(0).any()):",
        new="if leaf.requires_grad:",
        tests=in_file(
            T_CHECKS,
            [
                "test_fault_06_a_frozen_backbone_is_an_error_although_the_tap_requires_grad",
                "test_fault_06_layers_after_the_tap_do_not_count",
            ],
        ),
    ),
    Mutant(
        fault=6,
        what="the check counts the gradient of all tokens, not of the visual ones",
        file=ALIGNER,
        old="self._check.tokens(students, self.projectors, self.adapter.how_to_unfreeze(), off)",
        new="self._check.tokens({d: FeatureMap(h[:, None, None], h[..., 0][:, None, None].isfinite()) "
        "for d, h in hidden.items()}, self.projectors)",
        tests=in_file(T_CHECKS, ["test_fault_06_a_frozen_backbone_is_an_error_although_the_tap_requires_grad"]),
    ),
    Mutant(
        fault=6,
        what="the check complains of every leaf that the gradient misses",
        file=CHECKS,
        old="            if gradient is not None and bool(gradient.ne(0).any()):\n                return leaf\n",
        new="            if gradient is None or not bool(gradient.ne(0).any()):\n                return None\n"
        "        return group[0]\n",
        tests=in_file(T_CHECKS, ["test_fault_06_one_trainable_layer_before_the_tap_is_enough"]),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=6,
        what="one depth that gradient reaches is enough for all",
        file=CHECKS,
        old="        for depth, student in students.items():\n",
        new="        for depth, student in list(students.items())[-1:]:\n",
        tests=in_file(T_CHECKS, ["test_fault_06_every_depth_is_checked"]),
    ),
    Mutant(
        fault=7,
        what="nobody asks whether LoRA lies on the way of the visual tokens",
        file=CHECKS,
        old="            if leaf is None:\n",
        new="            if leaf is None:\n                continue\n            if False:\n",
        tests=("tests/test_peft.py::test_fault_07_lora_that_misses_the_visual_path_is_an_error",),
    ),
    Mutant(
        fault=8,
        what="a frozen projector is not looked for",
        file=CHECKS,
        old="if parameters and not any(parameter.requires_grad for parameter in parameters):",
        new="if False:",
        tests=(
            f"{T_CHECKS}::test_fault_08_a_projector_frozen_after_the_wrap_is_an_error",
            "tests/test_peft.py::test_fault_08_lora_after_the_wrap_is_found_out",
        ),
    ),
    Mutant(
        fault=9,
        what="nobody asks whether the optimizer has moved the projector",
        file=CHECKS,
        old="        return False if self.steps >= 2 else None\n",
        new="        return None\n",
        tests=in_file(T_CHECKS, ["test_fault_09_an_optimizer_built_before_wrap_is_found_out"]),
    ),
    Mutant(
        fault=9,
        what="a policy that moved is proof enough for the projector",
        file=CHECKS,
        old="if self.projector._version != self.projector_version:",
        new="if self.projector._version != self.projector_version or self.witness._version != self.witness_version:",
        tests=in_file(T_CHECKS, ["test_fault_09_an_optimizer_built_before_wrap_is_found_out"]),
    ),
    Mutant(
        fault=10,
        what="a projector that never moved is no error",
        file=CHECKS,
        old="        if self.projector_moved is False:\n",
        new="        if False:\n",
        tests=in_file(T_CHECKS, ["test_fault_10_parameter_groups_without_the_projector_are_found_out"]),
    ),
    Mutant(
        fault=10,
        what="the projector is beside the policy's module tree, where neither optimizer nor clipping finds it",
        file=ATTACH,
        old="    policy.add_module(HANDLE, handle)\n",
        new="    object.__setattr__(policy, HANDLE, handle)\n",
        also=(Edit(ATTACH, "handle = self._modules.get(HANDLE)", "handle = self.__dict__.get(HANDLE)"),),
        tests=in_file(T_CHECKS, ["test_fault_10_clipping_the_policy_clips_the_projector"]),
    ),
    Mutant(
        fault=26,
        what="the range of the pictures is not looked at",
        file=CHECKS,
        old="    if low < -_TOLERANCE or high > 1 + _TOLERANCE:\n",
        new="    if False:\n",
        tests=in_file(T_CHECKS, ["test_fault_26_images_outside_0_1_are_an_error"]),
    ),
    Mutant(
        fault=26,
        what="only pictures above the range are an error",
        file=CHECKS,
        old="    if low < -_TOLERANCE or high > 1 + _TOLERANCE:\n",
        new="    if high > 1 + _TOLERANCE:\n",
        tests=(f"{T_CHECKS}::test_fault_26_images_outside_0_1_are_an_error[2.0--1.0]",),
    ),
    Mutant(
        fault=26,
        what="NaN in pictures is not looked for",
        file=CHECKS,
        old="    if not bool(inside.isfinite().all()):\n",
        new="    if False:\n",
        tests=in_file(T_CHECKS, ["test_fault_26_nan_images_are_an_error"]),
    ),
)
