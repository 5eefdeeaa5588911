"""Mutants that tests of pairs, presets and the released loss must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

T_PAIRS = "tests/pairs/test_pairs.py"
T_ATTENTION = "tests/pairs/test_attention.py"
T_PARITY = "tests/parity/test_alignment_loss.py"
T_PRESETS = "tests/presets/test_presets.py"
T_TRANSFORMS = "tests/transforms/test_transforms.py"

PAIRS = (
    Mutant(
        fault=35,
        what="the attention of block k is made of what leaves it",
        file="sfkit/alignment/tap.py",
        old="adapter.tap(block - 1)",
        new="adapter.tap(block)",
        tests=in_file(T_ATTENTION, ["test_fault_35_attention_of_block_k_is_made_of_what_enters_it"]),
    ),
    Mutant(
        fault=16,
        what="visual tokens are cut one place too late unless somebody says otherwise",
        file="sfkit/policies/base.py",
        old="token_shift: int = Field(\n        default=0,",
        new="token_shift: int = Field(\n        default=1,",
        tests=in_file(T_PAIRS, ["test_fault_16_a_token_shift_cuts_one_place_too_late"]),
    ),
    Mutant(
        fault=34,
        what="a single pair on a shared projector has the smallest width",
        file="sfkit/projectors/nested.py",
        old="        return (hidden,)\n",
        new="        return (max(1, int(smallest * hidden)),)\n",
        tests=in_file(T_PAIRS, ["test_fault_34_a_single_pair_on_a_shared_projector_has_every_unit"]),
    ),
    Mutant(
        fault=16,
        what="the OpenVLA preset has no token shift",
        file="sfkit/presets/published.py",
        old='"depth": 24, "adapter": {"token_shift": 1}',
        new='"depth": 24, "adapter": {}',
        tests=(
            f"{T_PRESETS}::test_fault_16_spatial_forcing_for_openvla_is_that_and_the_token_shift",
            f"{T_PARITY}::test_fault_16_18_target_loss_and_gradients_are_those_of_the_released_code[own]",
        ),
    ),
    Mutant(
        fault=17,
        what="the target's size comes from one float ratio unless somebody says otherwise",
        file="sfkit/transforms/resample.py",
        old="scale_factor: bool = Field(\n        default=False,",
        new="scale_factor: bool = Field(\n        default=True,",
        tests=in_file(
            T_TRANSFORMS,
            [
                "test_fault_17_every_grid_is_reached_unless_the_released_size_is_asked_for",
                "test_fault_17_a_grid_of_another_aspect_is_reached",
            ],
        ),
        ends_in=("ShapeError",),
    ),
    Mutant(
        fault=17,
        what="resampling is asked for a ratio, not for a size",
        file="sfkit/alignment/resample.py",
        old='F.interpolate(x, size=size, mode="bilinear"',
        new=(
            "F.interpolate(x, scale_factor=1 / (x.shape[-2] * x.shape[-1] / (size[0] * size[1])) ** 0.5, "
            'recompute_scale_factor=True, mode="bilinear"'
        ),
        tests=in_file("tests/alignment/test_resample.py", ["test_fault_17_and_18_cell_centres_stay_where_they_are"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=18,
        what="corners are aligned everywhere",
        file="sfkit/alignment/resample.py",
        old='mode="bilinear", align_corners=False, antialias=shrinking',
        new='mode="bilinear", align_corners=True',
        tests=(
            "tests/alignment/test_resample.py::test_fault_17_and_18_cell_centres_stay_where_they_are",
            f"{T_TRANSFORMS}::test_fault_18_patches_stay_where_they_are_unless_their_corners_are_aligned",
        ),
    ),
    Mutant(
        fault=18,
        what="corners are aligned unless somebody says otherwise",
        file="sfkit/transforms/resample.py",
        old="align_corners: bool = Field(\n        default=False,",
        new="align_corners: bool = Field(\n        default=True,",
        tests=in_file(T_TRANSFORMS, ["test_fault_18_patches_stay_where_they_are_unless_their_corners_are_aligned"]),
    ),
    Mutant(
        fault=33,
        what="nobody is told that a preset's position code was made for another teacher",
        file="sfkit/presets/filling.py",
        old="        _warn_of_scale(preset, recipe, given)\n",
        new="",
        tests=in_file(T_PRESETS, ["test_fault_33_another_teacher_under_an_absolute_code_is_warned_of"]),
        ends_in=("Failed",),
    ),
    Mutant(
        fault=35,
        what="the last of ROCKET's pairs is read one block later",
        file="sfkit/presets/published.py",
        old='{"depth": 31, "layer": 24}',
        new='{"depth": 32, "layer": 24}',
        tests=in_file(T_PRESETS, ["test_fault_35_rockets_pairs_are_depths_and_layers_that_mean_one_thing"]),
    ),
    Mutant(
        fault=35,
        what="ROCKET's layers, counted from 0 in its own lists, are taken as they stand there",
        file="sfkit/presets/published.py",
        old='{"depth": d, "layer": 2 * d - 1}',
        new='{"depth": d, "layer": 2 * d - 2}',
        tests=in_file(T_PRESETS, ["test_fault_35_rockets_pairs_are_depths_and_layers_that_mean_one_thing"]),
    ),
)
