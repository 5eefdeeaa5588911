"""Mutants of registration and masks: a token meets its own piece of the picture, and what is masked counts nowhere."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

RESAMPLE = "sfkit/alignment/resample.py"
STEP = "sfkit/alignment/step.py"
GEOMETRY = "sfkit/teachers/geometry.py"
POLICIES = "sfkit/testing/policies.py"
REGISTRATION = "sfkit/testing/registration.py"

T_STEP = "tests/alignment/test_step.py"
T_TEACHER = "tests/teachers/test_geometry_teacher.py"

MASKS = (
    Mutant(
        fault=20,
        what="the cells of a patch are gathered with rows and columns exchanged",
        file=GEOMETRY,
        old="split.permute(0, 1, 2, 4, 3, 5, 6)",
        new="split.permute(0, 1, 4, 2, 3, 5, 6)",
        tests=(
            f"{T_TEACHER}::test_fault_20_the_cell_that_moves_is_the_patch_that_moved",
            "tests/test_registration.py::test_fault_20_tiny_is_registered[geometry]",
        ),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=20,
        what="the student's tokens are cut out with rows and columns exchanged",
        file=POLICIES,
        old="self.options.token_shift).reshape(b, v, *grid, -1)",
        new="self.options.token_shift).reshape(b, v, *grid, -1).transpose(2, 3)",
        tests=("tests/test_registration.py::test_fault_20_tiny_is_registered",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=20,
        what="the registration check looks at the view only",
        file=REGISTRATION,
        old="    if found[0] != wanted[0] or not own:\n",
        new="    if found[0] != wanted[0]:\n",
        tests=(
            "tests/test_registration.py::test_fault_20_exchanged_axes_are_found",
            "tests/test_registration.py::test_fault_20_a_teacher_with_a_grid_of_its_own_is_registered_too",
        ),
    ),
    Mutant(
        fault=25,
        what="the registration check looks at the cell only",
        file=REGISTRATION,
        old="    if found[0] != wanted[0] or not own:\n",
        new="    if not own:\n",
        tests=("tests/test_registration.py::test_fault_25_exchanged_cameras_are_found",),
    ),
    Mutant(
        fault=21,
        what="the student's masked tokens are multiplied by 0",
        file=STEP,
        old="return compare(select(values), select(source))",
        new="return compare(values * mask.unsqueeze(-1), select(source))",
        tests=in_file(T_STEP, ["test_fault_21_nan_in_masked_tokens_reaches_neither_loss_nor_gradient"]),
    ),
    Mutant(
        fault=21,
        what="the teacher's masked features are multiplied by 0",
        file=STEP,
        old="return compare(select(values), select(source))",
        new="return compare(select(values), source * mask.unsqueeze(-1))",
        tests=in_file(T_STEP, ["test_fault_21_nan_in_masked_tokens_reaches_neither_loss_nor_gradient"]),
    ),
    Mutant(
        fault=21,
        what="the teacher's own masked features are multiplied by 0, and not cleared before",
        file=STEP,
        old="return compare(select(values), select(source))",
        new="return compare(select(values), source * mask.unsqueeze(-1))",
        also=(Edit(RESAMPLE, "clean = features.sanitised()", "clean = features"),),
        tests=in_file(T_STEP, ["test_fault_21_nan_where_only_the_teacher_is_masked"]),
    ),
    Mutant(
        fault=21,
        what="masked features take part in resampling",
        file=RESAMPLE,
        old="clean = features.sanitised()",
        new="clean = features",
        tests=in_file(T_STEP, ["test_fault_21_nan_where_a_masked_teacher_is_resampled"]),
    ),
    Mutant(
        fault=21,
        what="what is masked is cleared by a product",
        file="sfkit/types.py",
        old="return FeatureMap(torch.where(self.mask.unsqueeze(-1), self.values, 0.0), self.mask)",
        new="return FeatureMap(self.values * self.mask.unsqueeze(-1), self.mask)",
        tests=in_file(T_STEP, ["test_fault_21_nan_where_a_masked_teacher_is_resampled"]),
    ),
    Mutant(
        fault=22,
        what="the mean over no token is 0 / 0",
        file="sfkit/objectives/base.py",
        old="mask.flatten(1).sum(1).clamp(min=1)",
        new="mask.flatten(1).sum(1)",
        tests=in_file(T_STEP, ["test_fault_22_a_sample_without_a_valid_token_contributes_zero"]),
    ),
)
