"""Mutants on real policies of LeRobot: views and their registration."""

from __future__ import annotations

from mutant import Mutant, in_file

BASE = "plugins/sfkit-lerobot/src/sfkit_lerobot/base.py"
PREFIX = "plugins/sfkit-lerobot/src/sfkit_lerobot/prefix.py"
CAMERAS = "sfkit/view_geometry.py"
DATASET = "plugins/sfkit-lerobot/src/sfkit_lerobot/dataset.py"
LETTERBOX = "plugins/sfkit-lerobot/src/sfkit_lerobot/letterbox.py"
NORMALIZATION = "plugins/sfkit-lerobot/src/sfkit_lerobot/normalization.py"
PI0 = "plugins/sfkit-lerobot/src/sfkit_lerobot/pi0.py"
PI05 = "plugins/sfkit-lerobot/src/sfkit_lerobot/pi05.py"
SMOLVLA = "plugins/sfkit-lerobot/src/sfkit_lerobot/smolvla.py"
CHECKS = "sfkit/alignment/checks.py"

T_DATASET = "plugins/sfkit-lerobot/tests/test_dataset.py"
T_REGISTRATION = "plugins/sfkit-lerobot/tests/test_registration.py"
T_PI05 = "plugins/sfkit-lerobot/tests/test_pi05.py"
T_VIEWS = "plugins/sfkit-lerobot/tests/test_views.py"

_PRESENT_FIRST = "(batch[key].shape[-2], batch[key].shape[-1])) for key in keys if key in batch\n"
_OWN_CELL = "test_fault_20_a_patch_moves_its_own_token_and_its_own_cell"

LEROBOT_VIEWS = (
    Mutant(
        fault=16,
        what="the length of the sequence is not looked at",
        file=PREFIX,
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
        file=PREFIX,
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
        old="return on_device(inside, images.device) & ",
        new="return on_device(torch.ones_like(inside), images.device) & ",
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
        file="sfkit/letterbox.py",
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
        file=PREFIX,
        old="        keys = list(self.policy.config.image_features)\n",
        new="        keys = sorted(self.policy.config.image_features, key=list(batch).index)\n",
        tests=in_file(T_VIEWS, ["test_fault_25_views_are_in_the_order_of_the_policy_not_of_the_batch"]),
    ),
    Mutant(
        fault=25,
        what="a missing camera keeps its place in the sequence",
        file=PREFIX,
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
)
