"""Mutants of the OpenVLA adapter, and of what it stands on."""

from __future__ import annotations

from mutant import Mutant

ALIGNER = "sfkit/aligner.py"
ADAPTER = "plugins/sfkit-openvla/src/sfkit_openvla/adapter.py"
JOINER = "sfkit/joining/joiner.py"
SCALE = "sfkit/joining/scale.py"
PICTURES = "plugins/sfkit-openvla/src/sfkit_openvla/pictures.py"

_TESTS = "plugins/sfkit-openvla/tests"
T_TOKENS = f"{_TESTS}/test_openvla_tokens.py"
T_VIEWS = f"{_TESTS}/test_openvla_views.py"
T_LOSS = f"{_TESTS}/test_openvla_loss.py"
T_SCRIPTS = f"{_TESTS}/test_openvla_scripts.py"
T_REGISTERED = f"{T_TOKENS}::test_fault_16_20_25_every_patch_moves_its_own_token"
T_EXPLICIT = f"{T_LOSS}::test_fault_03_04_13_the_loss_of_the_script_trains_the_explicit_sum"

_CUT = "cut(hidden, 1, count, self.options.token_shift).reshape(b, v, rows, columns, -1)"
_UNDO = "channels[:, :, -3:] * 0.5 + 0.5"
_FLOAT = "pixel_values.float().reshape("
_TAP = "        return TapPoint(self._decoder.layers[depth].input_layernorm, path)\n"
_AFTER_ATTENTION = _TAP.replace("input_layernorm", "post_attention_layernorm")

_RIDE = "Ride(gradient=lambda: self.scale.gradient(device), arrived=self._carried)"

OPENVLA: tuple[Mutant, ...] = (
    Mutant(
        fault=3,
        what="OpenVLA's tap is inside a block, and so inside its reentrant checkpoint",
        file=ADAPTER,
        old=_TAP,
        new=_AFTER_ATTENTION,
        tests=(f"{T_EXPLICIT}[openvla-reentrant]",),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=4,
        what="taps stay armed while OpenVLA's blocks are run again",
        file=ALIGNER,
        old="                tap.disarm()\n",
        new="                pass\n",
        tests=(f"{T_EXPLICIT}[openvla-checkpointed]",),
    ),
    Mutant(
        fault=12,
        what="what rides on OFT's outputs does not reach the projector",
        file=JOINER,
        old="carry(output, term, ride)",
        new="carry(output, term.detach(), ride)",
        tests=(f"{T_SCRIPTS}::test_fault_12_lora_film_ddp_and_an_optimizer[oft-l1-film]",),
        ends_in=("GradientError",),
    ),
    Mutant(
        fault=13,
        what="the alignment loss joins the loss that OFT's loop does not read",
        file=ADAPTER,
        old="        self.loss_outside = self.is_oft\n",
        new="        self.loss_outside = False\n",
        tests=(
            f"{T_EXPLICIT}[oft-l1-plain]",
            f"{T_EXPLICIT}[oft-diffusion-plain]",
            f"{T_LOSS}::test_fault_13_the_loss_that_oft_does_not_read_cannot_be_asked_for",
        ),
    ),
    Mutant(
        fault=14,
        what="what rides on OFT's outputs does not follow the division for accumulation",
        file=SCALE,
        old="        return scaled / (self.accumulation or 1)\n",
        new="        return scaled\n",
        tests=(f"{T_LOSS}::test_fault_14_accumulated_batches_count_as_one[oft-l1]",),
    ),
    Mutant(
        fault=14,
        what="what rides on OFT's outputs does not follow the scaler",
        file=SCALE,
        old="one if self.scaler is None else self.scaler.scale(one)",
        new="one",
        tests=(f"{T_LOSS}::test_fault_14_the_scaler_of_the_loop_is_followed[oft-l1]",),
    ),
    Mutant(
        fault=14,
        what="what was added to OFT's loss rides on its outputs as well",
        file=JOINER,
        old="                ride.added = True\n",
        new="                pass\n",
        tests=(f"{T_LOSS}::test_fault_14_what_is_added_follows_every_factor[oft-l1-1]",),
    ),
    Mutant(
        fault=55,
        what="of two forwards of OFT before one backward only one is aligned",
        file=JOINER,
        old=_RIDE,
        new=f'self.__dict__.setdefault("ride", {_RIDE})',
        tests=(f"{T_LOSS}::test_fault_55_two_batches_before_one_backward[oft-l1]",),
    ),
    Mutant(
        fault=16,
        what="OpenVLA's visual tokens are taken to begin with BOS",
        file=ADAPTER,
        old=_CUT,
        new=_CUT.replace("1, count", "0, count"),
        tests=(f"{T_REGISTERED}[oft-l1-2-False]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=16,
        what="OpenVLA's visual tokens are read one place too late, up to OFT's proprio token",
        file=ADAPTER,
        old=_CUT,
        new=_CUT.replace("1, count", "2, count"),
        tests=(
            f"{T_REGISTERED}[oft-l1-2-False]",
            f"{T_TOKENS}::test_fault_16_the_proprio_token_is_in_the_span_only_with_the_shift[0]",
        ),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=16,
        what="the option that reproduces the released recipe's shift does nothing",
        file=ADAPTER,
        old=_CUT,
        new=_CUT.replace(", self.options.token_shift", ""),
        tests=(
            f"{T_TOKENS}::test_fault_16_the_released_recipes_shift_is_found",
            f"{T_TOKENS}::test_fault_16_the_proprio_token_is_in_the_span_only_with_the_shift[1]",
        ),
    ),
    Mutant(
        fault=20,
        what="OpenVLA's visual tokens are laid out with rows and columns exchanged",
        file=ADAPTER,
        old=_CUT,
        new=f"{_CUT}.transpose(2, 3)",
        tests=(f"{T_REGISTERED}[openvla-1-False]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=24,
        what="the grey bars of OpenVLA's letterbox are aligned",
        file=ADAPTER,
        old="            valid = inside_bars(images)\n",
        new="            pass\n",
        tests=(f"{T_VIEWS}::test_fault_24_the_bars_of_a_letterbox_are_not_aligned",),
    ),
    Mutant(
        fault=25,
        what="OFT's views are taken to come wrists first",
        file=ADAPTER,
        old="        fused, count",
        new="        pixel_values = pixel_values.unflatten(1, (self.num_views, -1)).flip(1).flatten(1, 2)\n"
        "        fused, count",
        tests=(f"{T_VIEWS}::test_fault_25_views_come_in_the_order_of_the_channels", f"{T_REGISTERED}[oft-l1-2-False]"),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=25,
        what="the halves of OpenVLA's channels are not compared",
        file=ADAPTER,
        old="            check_halves(pixel_values, count)\n",
        new="            pass\n",
        tests=(f"{T_VIEWS}::test_fault_25_26_channels_in_another_order_or_range_are_an_error",),
    ),
    Mutant(
        fault=26,
        what="the teacher is shown OpenVLA's pixels in [-1, 1]",
        file=PICTURES,
        old=_UNDO,
        new="channels[:, :, -3:]",
        tests=(f"{T_VIEWS}::test_fault_26_teachers_see_the_cameras_pixels[siglip-1]",),
        ends_in=("ViewsError",),
    ),
    Mutant(
        fault=26,
        what="OpenVLA's normalisation is undone in the policy's precision",
        file=PICTURES,
        old=_FLOAT,
        new="pixel_values.reshape(",
        tests=(f"{T_VIEWS}::test_fault_26_the_loops_cast_to_bfloat16_costs_a_quarter_of_a_grey_level",),
    ),
    Mutant(
        fault=35,
        what="OpenVLA's depth k is the stream within block k",
        file=ADAPTER,
        old=_TAP,
        new=_AFTER_ATTENTION,
        tests=(f"{T_TOKENS}::test_fault_35_a_tap_at_depth_k_reads_the_hidden_state_k[openvla]",),
    ),
    Mutant(
        fault=35,
        what="OpenVLA's last depth is lost",
        file=ADAPTER,
        old="        return len(self._decoder.layers)\n",
        new="        return len(self._decoder.layers) - 1\n",
        tests=(f"{T_TOKENS}::test_fault_35_depths",),
    ),
    Mutant(
        fault=52,
        what="the teacher is shown OpenVLA's pictures in bfloat16",
        file=PICTURES,
        old=_FLOAT,
        new="pixel_values.reshape(",
        tests=(f"{T_LOSS}::test_fault_52_a_policy_in_bfloat16_keeps_its_projector_and_pictures[openvla]",),
    ),
)
