"""Mutants of faults 82 to 84: presets, and what of the released code they repeat."""

from __future__ import annotations

from mutant import Mutant
from operators import replace_argument, replace_call

# fmt: off
PRESETS = (
    Mutant(82, "resolve._merge", replace_call("_with_options_of", "_2"),
           "test_fault_82_a_component_keeps_the_presets_options", "test_fault_82_pairs_keep_the_presets_options_too",
           ends_in=("ValidationError", "ConfigError", "KeyError", "AttributeError")),
    Mutant(82, "admitted", replace_call("_of_preset", "{}"), "test_fault_82_options_reach_what_a_preset_names",
           ends_in="ConfigError"),
    Mutant(83, "OpenVLAAdapter.views", replace_argument("to_images", "constants", "None"),
           "test_fault_83_the_processors_own_constants_are_undone"),
    Mutant(84, "ConvProjector.__init__", replace_call("Conv2d", "xavier(_)"),
           "test_fault_84_a_convolution_starts_as_the_released_one_does"),
)
