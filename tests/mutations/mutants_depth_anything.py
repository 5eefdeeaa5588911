"""Mutants that tests of the Depth Anything plugin must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

HERE = "plugins/sfkit-depth-anything/src/sfkit_depth_anything"
TABLES, TEACHERS, TRUNK, WEIGHTS = (f"{HERE}/{name}.py" for name in ("tables", "teachers", "trunk", "weights"))
PICTURES = "sfkit/teachers/pictures.py"
TESTS = "plugins/sfkit-depth-anything/tests/test_faults.py"

_GRID = ".reshape(b, v, *grid, -1)"
_FITS_ONE = "    if len(fitting) == 1:\n        return fitting[0]\n"

DEPTH_ANYTHING = (
    Mutant(
        fault=19,
        what="Depth Anything's patches are laid out in a square",
        file=TRUNK,
        old=_GRID,
        new=".reshape(b, v, *2 * [round((grid[0] * grid[1]) ** 0.5)], -1)",
        tests=in_file(
            TESTS,
            [
                "test_fault_19_a_grid_that_is_not_square_stays_as_it_is",
                "test_fault_19_a_wide_view_reaches_the_students_own_grid",
            ],
        ),
    ),
    Mutant(
        fault=20,
        what="Depth Anything's patches are laid out by columns",
        file=TRUNK,
        old=_GRID,
        new=".reshape(b, v, *grid[::-1], -1)",
        tests=in_file(TESTS, ["test_fault_20_a_patch_moves_its_own_cell"]),
    ),
    Mutant(
        fault=20,
        what="Depth Anything's learned positions are scaled with rows for columns",
        file=TABLES,
        old="scale_factor=(rows, columns)",
        new="scale_factor=(columns, rows)",
        tests=in_file(TESTS, ["test_fault_20_learned_positions_keep_rows_and_columns_apart"]),
    ),
    Mutant(
        fault=23,
        what="Depth Anything sees absent views",
        file="sfkit/teachers/base.py",
        old="    drops_absent: ClassVar[bool] = True\n",
        new="    drops_absent: ClassVar[bool] = False\n",
        tests=in_file(
            TESTS,
            [
                "test_fault_23_an_absent_view_changes_nothing_in_real_ones",
                "test_fault_23_the_reference_is_chosen_among_the_present",
            ],
        ),
    ),
    Mutant(
        fault=23,
        what="Depth Anything sees what is masked",
        file=PICTURES,
        old="        if not self.options.keep_letterbox:\n",
        new="        if False:\n",
        tests=in_file(TESTS, ["test_fault_23_masked_pixels_change_nothing"]),
    ),
    Mutant(
        fault=26,
        what="Depth Anything is given pictures of any range",
        file=PICTURES,
        old="        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):\n",
        new="        if False:\n",
        tests=in_file(TESTS, ["test_fault_26_pictures_outside_0_1_are_refused"]),
    ),
    Mutant(
        fault=26,
        what="Depth Anything's pictures are not normalised",
        file=TEACHERS,
        old="            imagenet_normalised(images),\n",
        new="            images,\n",
        tests=in_file(TESTS, ["test_fault_26_pictures_are_normalised_exactly_once"]),
    ),
    Mutant(
        fault=26,
        what="Depth Anything's pictures are normalised twice",
        file=TEACHERS,
        old="            imagenet_normalised(images),\n",
        new="            imagenet_normalised(imagenet_normalised(images)),\n",
        tests=in_file(TESTS, ["test_fault_26_pictures_are_normalised_exactly_once"]),
    ),
    Mutant(
        fault=29,
        what="any tensor of a Depth Anything file may be passed over",
        file=WEIGHTS,
        old='    "model.da3_metric.*",\n',
        new='    "model.*",\n',
        tests=(
            f"{TESTS}::test_fault_29_a_file_that_does_not_fit_is_refused[unexpected]",
            f"{TESTS}::test_fault_29_a_file_that_does_not_fit_is_refused[foreign]",
        ),
    ),
    Mutant(
        fault=29,
        what="keys and shapes are not compared before Depth Anything is loaded",
        file="sfkit/trunks/weights.py",
        old="    if faults:\n",
        new="    if False:\n",
        tests=tuple(
            f"{TESTS}::test_fault_29_a_file_that_does_not_fit_is_refused[{case}]"
            for case in ("missing", "unexpected", "shape", "foreign")
        ),
    ),
    Mutant(
        fault=29,
        what="where no known prefix fits a Depth Anything file, the usual one is taken",
        file=WEIGHTS,
        old=_FITS_ONE,
        new="    if len(fitting) < 2:\n        return (*fitting, *PREFIXES)[0]\n",
        tests=in_file(TESTS, ["test_fault_29_a_renamed_prefix_is_refused"]),
    ),
)
