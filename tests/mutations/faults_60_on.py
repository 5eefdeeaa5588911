"""Mutants of faults 60 on: depth and settings of LeRobot's datasets and trainer, and gradients of several encoders."""

from __future__ import annotations

from mutant import Mutant
from operators import drop_raise, fix_condition, replace_return

# fmt: off
NEWEST = (
    Mutant(60, "_require_same_aspect", drop_raise("ViewsError"),
           "test_fault_60_depth_of_another_aspect_ratio_is_refused"),
    Mutant(61, "CameraRig.known_depth", replace_return("depth", mentions="where"),
           "test_fault_61_the_clipped_ends_of_a_video_are_unknown"),
    Mutant(61, "_recorded_range", replace_return("camera.depth_range", mentions="depth_max"),
           "test_fault_61_the_clipped_ends_of_a_video_are_unknown",
           "test_fault_61_a_range_narrows_what_the_dataset_records"),
    Mutant(62, "refuse_moving", drop_raise("ConfigError", mentions="_DRAWS"),
           "test_fault_62_what_moves_pixels_is_refused_in_any_form"),
    Mutant(63, "read_trainer", replace_return("Trainer()", mentions="log_freq"),
           "test_fault_63_settings_of_a_program_are_used", ends_in="ConfigError"),
    Mutant(64, "Trainer.refuse_unknown_depth", fix_condition(False, "streams"),
           "test_fault_64_depth_of_a_streamed_dataset_is_refused"),
    Mutant(65, "adopt_base_config", fix_condition(True, "given"),
           "test_fault_65_a_value_that_is_lerobots_default_wins_too"),
    Mutant(66, "Tap.take", replace_return("(torch.cat(_),)", mentions="_others"),
           "test_fault_66_gradients_of_maps_are_those_of_autograd[diffusion-separate]"),
)
