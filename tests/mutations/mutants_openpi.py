"""Mutants of the openpi adapter, and of the watches that it stands on."""

from __future__ import annotations

from mutant import Mutant

ALIGNER = "sfkit/aligner.py"
REDUCTION = "sfkit/alignment/reduction.py"
TAP = "sfkit/alignment/tap.py"
ADAPTER = "plugins/sfkit-openpi/src/sfkit_openpi/adapter.py"
GEOMETRY = "plugins/sfkit-openpi/src/sfkit_openpi/geometry.py"

_TESTS = "plugins/sfkit-openpi/tests"
T_LOSS = f"{_TESTS}/test_openpi_loss.py"
T_TAPS = f"{_TESTS}/test_openpi_taps.py"
T_REDUCTION = "tests/alignment/test_reduction.py"
T_VIEWS = f"{_TESTS}/test_openpi_views.py"
T_GEOMETRY = f"{_TESTS}/test_openpi_geometry.py"
T_REGISTRATION = f"{_TESTS}/test_openpi_registration.py"

#: The pictures of the batch, in the order of its dictionary.
_OF_THE_BATCH = "seen = torch.stack(list(observation.images.values()), 1).float() * 0.5 + 0.5\n"
_SEEN = 'seen = self._seen(call.inputs["vision"])\n'
_PRESENT = "masks = [observation.image_masks.get(name, everywhere) for name in self.names]"

# Cases are named: those of openpi's own classes skip themselves where it is not installed.
OPENPI: tuple[Mutant, ...] = (
    Mutant(
        fault=1,
        what="openpi's tap is on the decoder block, which the policy never calls",
        file=ADAPTER,
        old='f"{_DECODER}.layers.{depth}.input_layernorm"',
        new='f"{_DECODER}.layers.{depth}"',
        tests=(f"{T_TAPS}::test_fault_01_taps_fire_once_where_hooks_on_blocks_are_silent[standin-pi0]",),
    ),
    Mutant(
        fault=4,
        what="a watch keeps what activation checkpointing runs again",
        file=TAP,
        old="        if self.armed:\n            value =",
        new="        if True:\n            value =",
        tests=(
            "tests/alignment/test_watch.py::test_fault_04_a_watch_does_not_see_the_recomputation",
            f"{T_TAPS}::test_fault_04_the_policy_checkpoints_twice_and_nothing_is_caught_twice[standin-pi0]",
        ),
    ),
    Mutant(
        fault=4,
        what="taps stay armed while openpi's checkpoints are run again",
        file=ALIGNER,
        old="                tap.disarm()\n",
        new="                pass\n",
        tests=(f"{T_TAPS}::test_fault_04_the_policy_checkpoints_twice_and_nothing_is_caught_twice[standin-pi0]",),
    ),
    Mutant(
        fault=15,
        what="nobody looks whether losses are summed",
        file=REDUCTION,
        old="    loss.register_hook(look)  # type: ignore[no-untyped-call]\n",
        new="",
        tests=(f"{T_REDUCTION}::test_fault_15_a_sum_is_told", f"{T_LOSS}::test_fault_15_a_sum_over_elements_is_told"),
    ),
    Mutant(
        fault=15,
        what="a mean is taken for a sum",
        file=REDUCTION,
        old="(gradient == 1).all()",
        new="(gradient == gradient.flatten()[0]).all()",
        tests=(
            f"{T_REDUCTION}::test_fault_15_other_reductions_are_not",
            f"{T_LOSS}::test_fault_15_other_reductions_are_taken_as_they_are",
        ),
        ends_in=("SfkitWarning",),
    ),
    Mutant(
        fault=16,
        what="openpi's visual tokens are cut out one place too late",
        file=ADAPTER,
        old="cut(hidden, 0, count, self.options.token_shift)",
        new="cut(hidden, 1, count, self.options.token_shift)",
        tests=(f"{T_REGISTRATION}::test_fault_16_and_20_a_patch_moves_its_own_token_and_its_own_feature[standin-pi0]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=16,
        what="the shift that reproduces the released recipe shifts nothing",
        file=ADAPTER,
        old="cut(hidden, 0, count, self.options.token_shift)",
        new="cut(hidden, 0, count)",
        tests=(f"{T_REGISTRATION}::test_fault_16_the_shift_of_the_released_openvla_recipe_is_caught",),
    ),
    Mutant(
        fault=20,
        what="openpi's visual tokens are laid out with rows and columns exchanged",
        file=ADAPTER,
        old="tokens.reshape(len(hidden), v, *grid, -1), views",
        new="tokens.reshape(len(hidden), v, *grid, -1).transpose(2, 3), views",
        tests=(f"{T_REGISTRATION}::test_fault_16_and_20_a_patch_moves_its_own_token_and_its_own_feature[standin-pi0]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=23,
        what="an absent camera of openpi's counts as present",
        file=ADAPTER,
        old=_PRESENT,
        new="masks = [everywhere for name in self.names]",
        tests=(f"{T_VIEWS}::test_fault_23_an_absent_camera_touches_neither_loss_nor_gradient",),
    ),
    Mutant(
        fault=24,
        what="black bars of openpi's pictures are aligned",
        file=ADAPTER,
        old="        if self.options.bars:\n",
        new="        if False:\n",
        tests=(
            f"{T_VIEWS}::test_fault_24_black_bars_are_masked[standin-pi0-pipeline]",
            f"{T_VIEWS}::test_fault_24_a_black_picture_is_no_camera_whatever_its_mask_says[standin-pi0]",
        ),
    ),
    Mutant(
        fault=24,
        what="bars that openpi adds within forward are aligned",
        file=ADAPTER,
        old="        if picture.shape[-2] * seen.shape[-1] != picture.shape[-1] * seen.shape[-2]:\n",
        new="        if False:\n",
        tests=(f"{T_VIEWS}::test_fault_24_black_bars_are_masked[standin-pi0-forward]",),
    ),
    Mutant(
        fault=25,
        what="openpi's masks are read in the order of the observation",
        file=ADAPTER,
        old=_PRESENT,
        new=_PRESENT.replace("self.names", "observation.images"),
        tests=(f"{T_VIEWS}::test_fault_25_a_mask_stays_with_its_camera[standin-pi0]",),
    ),
    Mutant(
        fault=25,
        what="openpi's absent cameras are taken to come last",
        file=ADAPTER,
        old="torch.bool) for mask in masks], 1)",
        new="torch.bool) for mask in masks], 1).sort(1, descending=True).values",
        tests=(f"{T_REGISTRATION}::test_fault_25_a_masked_camera_keeps_its_place[standin-pi0]",),
    ),
    Mutant(
        fault=25,
        what="openpi's pictures are shown to the teacher in the order of the observation",
        file=ADAPTER,
        old=_SEEN,
        new=_OF_THE_BATCH,
        tests=(f"{T_REGISTRATION}::test_fault_25_the_order_of_the_observation_does_not_matter[standin-pi0]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=26,
        what="the teacher is shown pictures in [-1, 1]",
        file=ADAPTER,
        old="torch.stack(inputs, 1).float() * 0.5 + 0.5",
        new="torch.stack(inputs, 1).float()",
        tests=(f"{T_VIEWS}::test_fault_26_views_are_in_0_to_1[standin-pi0]",),
    ),
    Mutant(
        fault=26,
        what="pictures are not looked at before openpi clamps them",
        file=ADAPTER,
        old="            _check_range(pictures)\n",
        new="",
        tests=(
            f"{T_VIEWS}::test_fault_26_pictures_of_another_range_are_an_error",
            f"{T_VIEWS}::test_fault_26_pictures_in_0_to_1_are_suspected",
        ),
    ),
    Mutant(
        fault=27,
        what="the teacher is shown openpi's pictures as they were before augmentation",
        file=ADAPTER,
        old=_SEEN,
        new=_OF_THE_BATCH,
        tests=(f"{T_VIEWS}::test_fault_27_views_are_the_pixels_that_the_vision_tower_saw[standin-pi0]",),
    ),
    Mutant(
        fault=27,
        what="a camera that openpi crops and turns keeps its depth and calibration",
        file=GEOMETRY,
        old="                self._moved[key] = verdict\n",
        new="                self._moved[key] = False\n",
        tests=(
            f"{T_GEOMETRY}::test_fault_27_a_moved_camera_gets_no_depth[standin-pi0]",
            f"{T_GEOMETRY}::test_fault_27_only_moved_cameras_are_an_error_that_says_what_to_do[standin-pi0]",
        ),
    ),
)
