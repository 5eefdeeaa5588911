"""Mutants of what all teachers with a network share."""

from __future__ import annotations

from mutant import Mutant

WEIGHTS = "sfkit/trunks/weights.py"
PLACEMENT = "sfkit/trunks/placement.py"
NETWORK = "sfkit/teachers/network.py"
PICTURES = "sfkit/teachers/pictures.py"
T_WEIGHTS = "tests/trunks/test_weights.py"
T_NETWORK = "tests/teachers/test_network_teacher.py"

TRUNKS = (
    Mutant(
        fault=19,
        what="every view is squeezed into a square",
        file=PLACEMENT,
        old='    if fit == "stretch":\n',
        new="    if fit:\n",
        tests=(f"{T_NETWORK}::test_fault_19_a_view_that_is_not_square_keeps_its_aspect",),
    ),
    Mutant(
        fault=26,
        what="pictures are not looked at",
        file=PICTURES,
        old="        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):\n",
        new="        if False:\n",
        tests=(f"{T_NETWORK}::test_fault_26_pictures_out_of_range_are_refused",),
    ),
    Mutant(
        fault=26,
        what="NaN passes for a picture",
        file=PICTURES,
        old="        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):\n",
        new="        if low < -_TOLERANCE or high > 1 + _TOLERANCE:\n",
        tests=(f"{T_NETWORK}::test_fault_26_pictures_out_of_range_are_refused",),
    ),
    Mutant(
        fault=29,
        what="what fits is loaded, and the rest is passed over",
        file=WEIGHTS,
        old="    if faults:\n",
        new="    if False:\n",
        tests=(
            f"{T_WEIGHTS}::test_fault_29_missing_unexpected_and_misshapen_tensors_are_all_named",
            f"{T_WEIGHTS}::test_fault_29_a_renamed_prefix_is_no_reason_for_random_weights",
            f"{T_WEIGHTS}::test_fault_29_nothing_is_loaded_where_anything_is_wrong",
            f"{T_NETWORK}::test_fault_29_weights_of_another_size_are_refused",
            "tests/parity/test_parity.py::test_fault_29_a_state_dict_that_does_not_fit_is_refused",
        ),
    ),
    Mutant(
        fault=51,
        what="a network is built from the global generator",
        file=NETWORK,
        old="            with own_rng():\n",
        new="            if self.random:\n",
        tests=(f"{T_NETWORK}::test_fault_51_building_and_loading_leave_the_random_state_alone",),
    ),
)
