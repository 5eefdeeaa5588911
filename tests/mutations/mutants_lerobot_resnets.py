"""Mutants on ACT and Diffusion: cells of a ResNet, normalised pictures, random crops."""

from __future__ import annotations

from mutant import Mutant, in_file

HERE = "plugins/sfkit-lerobot/src/sfkit_lerobot"
ACT, BASE, DIFFUSION, RESNET = (f"{HERE}/{name}.py" for name in ("act", "base", "diffusion", "resnet"))

T_RESNETS = "plugins/sfkit-lerobot/tests/test_resnets.py"

_MIDDLE = "test_fault_20_a_cell_looks_at_the_middle_of_its_patch"
_OWN_CELL = "test_fault_20_a_patch_moves_its_own_token_and_its_own_cell"
_SAME_CROP = "test_fault_26_27_the_teacher_sees_the_crop_that_the_network_saw_as_the_camera_saw_it"

LEROBOT_RESNETS = (
    Mutant(
        fault=20,
        what="a ResNet's cells are taken for patches",
        file=RESNET,
        old="shift = stride // 2",
        new="shift = 0",
        tests=in_file(T_RESNETS, [_MIDDLE]),
    ),
    Mutant(
        fault=20,
        what="the state's token is taken for the first cell",
        file=ACT,
        old="before = 1 + bool(config.robot_state_feature) + bool(config.env_state_feature)",
        new="before = 1 + bool(config.env_state_feature)",
        tests=in_file(T_RESNETS, [f"{_OWN_CELL}[act]"]),
        ends_in=("ShapeError",),
    ),
    Mutant(
        fault=20,
        what="cameras and steps are exchanged",
        file=DIFFUSION,
        old="maps.reshape(b, steps, v, *maps.shape[1:])[:, -1]",
        new="maps.reshape(b, v, steps, *maps.shape[1:])[:, :, -1]",
        tests=in_file(T_RESNETS, [f"{_OWN_CELL}[diffusion]"]),
    ),
    Mutant(
        fault=26,
        what="the teacher is shown normalised pictures",
        file=RESNET,
        old="self._pictures(self._as_seen_by_the_camera(batch))",
        new="self._pictures(batch)",
        tests=in_file(T_RESNETS, [_SAME_CROP]),
    ),
    Mutant(
        fault=26,
        what="statistics that are unknown are not asked for",
        file=BASE,
        old='        if mode == "IDENTITY":',
        new='        if mode == "IDENTITY" or not self.options.image_stats:',
        tests=in_file(T_RESNETS, ["test_fault_26_unknown_statistics_are_an_error"]),
    ),
    Mutant(
        fault=27,
        what="the crop is taken to be central",
        file=DIFFUSION,
        old='if encoder.training and hasattr(encoder.maybe_random_crop, "get_params"):',
        new="if False:",
        tests=in_file(
            T_RESNETS, [f"{_SAME_CROP}[diffusion-cropped]", "test_fault_27_depth_moves_with_the_random_crop"]
        ),
    ),
    Mutant(
        fault=27,
        what="all cameras have the first one's crop",
        file=DIFFUSION,
        old='call.inputs[f"crop.{0 if shared else index}"]',
        new='call.inputs["crop.0"]',
        tests=in_file(T_RESNETS, [f"{_SAME_CROP}[diffusion-cropped-separate]"]),
    ),
    Mutant(
        fault=27,
        what="a crop is taken to be random in eval mode too",
        file=DIFFUSION,
        old="if encoder.training and",
        new="if",
        tests=in_file(T_RESNETS, ["test_fault_27_a_forward_in_eval_mode_crops_the_middle"]),
    ),
    Mutant(
        fault=25,
        what="views are in the order of the batch",
        file=RESNET,
        old="pictures = {key: batch[key] for key in self.policy.config.image_features}",
        new="pictures = {key: batch[key] for key in batch if key in self.policy.config.image_features}",
        tests=in_file(T_RESNETS, ["test_fault_25_views_are_in_the_order_of_the_policy"]),
    ),
    Mutant(
        fault=10,
        what="nobody looks whether the projector moves",
        file="sfkit/alignment/checks.py",
        old="return False if self.steps >= 2 else None",
        new="return None",
        tests=in_file(T_RESNETS, ["test_fault_10_diffusions_optimizer_without_the_projector_is_an_error"]),
    ),
)
