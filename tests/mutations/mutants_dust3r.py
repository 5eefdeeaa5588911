"""Mutants that tests of the DUSt3R plugin must notice, on its real trunk."""

from __future__ import annotations

from mutant import Mutant, in_file

HERE = "plugins/sfkit-dust3r/src/sfkit_dust3r"
FRAMING, TEACHER, TRUNK = (f"{HERE}/{name}.py" for name in ("framing", "teacher", "trunk"))
PICTURES, WEIGHTS = "sfkit/teachers/pictures.py", "sfkit/trunks/weights.py"

_TESTS = "plugins/sfkit-dust3r/tests"
T_PICTURES, T_WEIGHTS = f"{_TESTS}/test_pair_pictures.py", f"{_TESTS}/test_pair_weights.py"

_CROPPED = "test_fault_19_what_the_official_framing_crops_of_a_square_is_masked_and_the_rest_in_its_place"
_WIDE = "test_fault_19_a_wide_view_keeps_its_rows_and_columns"
_OWN_CELL = "test_fault_20_a_patch_moves_its_own_cell_of_a_view_that_is_not_square"
_TURNS = "test_fault_20_tokens_turn_by_row_and_column_and_not_the_other_way"
_ONCE = "test_fault_26_pictures_enter_between_minus_one_and_one_exactly_once"
_REFUSED = "test_fault_26_pictures_that_are_normalised_already_are_refused"
_NAMED = "test_fault_29_missing_unexpected_and_misshapen_tensors_are_named"
_DEEPER = "test_fault_29_a_deeper_checkpoint_is_not_cut_off"
_SHARED = "test_fault_29_one_decoder_is_shared_only_if_asked_for"

_ENCODED = "encoded[layer].view(b, v, *grid, -1)"
_IGNORED = "return self.ignored if self._decodes else (*self.ignored, *_DECODER)"

DUST3R = (
    # ------------------------------------------------------------------------------------------------------ grids
    Mutant(
        fault=19,
        what="what the official framing crops is taken for the whole view",
        file=FRAMING,
        old="return Placement(canvas, scaled, -((scaled[0] - canvas[0]) // 2), -((scaled[1] - canvas[1]) // 2))",
        new="return Placement(canvas, canvas)",
        tests=in_file(T_PICTURES, [_CROPPED]),
    ),
    Mutant(
        fault=19,
        what="the crop is not centred",
        file=FRAMING,
        old="return Placement(canvas, scaled, -((scaled[0] - canvas[0]) // 2), -((scaled[1] - canvas[1]) // 2))",
        new="return Placement(canvas, scaled)",
        tests=in_file(T_PICTURES, [_CROPPED]),
    ),
    Mutant(
        fault=19,
        what="every view is taken for a square",
        file=TEACHER,
        old="return super().placement(view)",
        new="return super().placement((max(view), max(view)))",
        tests=in_file(T_PICTURES, [_WIDE]),
    ),
    Mutant(
        fault=20,
        what="the teacher's grid has rows and columns exchanged",
        file=TRUNK,
        old=_ENCODED,
        new="encoded[layer].view(b, v, *grid[::-1], -1)",
        tests=in_file(T_PICTURES, [_OWN_CELL]),
    ),
    Mutant(
        fault=20,
        what="tokens are read column by column",
        file=TRUNK,
        old=_ENCODED,
        new="encoded[layer].view(b, v, *grid[::-1], -1).transpose(2, 3)",
        tests=in_file(T_PICTURES, [_OWN_CELL]),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=20,
        what="the rotary table is that of the grid on its side",
        file=TRUNK,
        old="rope_table(grid_positions(grid), head_dim)",
        new="rope_table(grid_positions(grid).flip(1), head_dim)",
        tests=in_file(T_PICTURES, [_TURNS]),
    ),
    # --------------------------------------------------------------------------------------------------- pictures
    Mutant(
        fault=26,
        what="the trunk is given [0, 1]",
        file=TEACHER,
        old="images * 2 - 1",
        new="images",
        tests=in_file(T_PICTURES, [_ONCE]),
    ),
    Mutant(
        fault=26,
        what="pictures are brought to [-1, 1] twice",
        file=TEACHER,
        old="images * 2 - 1",
        new="(images * 2 - 1) * 2 - 1",
        tests=in_file(T_PICTURES, [_ONCE]),
    ),
    Mutant(
        fault=26,
        what="nobody looks at the range of pictures",
        file=PICTURES,
        old="if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):",
        new="if False:",
        tests=in_file(T_PICTURES, [_REFUSED]),
    ),
    # ---------------------------------------------------------------------------------------------------- weights
    Mutant(
        fault=29,
        what="unexpected tensors are passed over",
        file=TEACHER,
        old=_IGNORED,
        new='return ("*",)',
        tests=in_file(T_WEIGHTS, [_NAMED, _DEEPER, _SHARED]),
    ),
    Mutant(
        fault=29,
        what="without a decoder, all else is passed over",
        file=TEACHER,
        old=_IGNORED,
        new='return self.ignored if self._decodes else ("*",)',
        tests=in_file(T_WEIGHTS, [_DEEPER]),
    ),
    Mutant(
        fault=29,
        what="shapes are not compared",
        file=WEIGHTS,
        old="if key in found and found[key] != shape",
        new="if False",
        tests=in_file(T_WEIGHTS, [_NAMED]),
    ),
    Mutant(
        fault=29,
        what="a missing second decoder is quietly replaced by the first",
        file=TEACHER,
        old='return sizes.with_shared_decoder() if self.options.decoders == "shared" else sizes',
        new="return sizes.with_shared_decoder()",
        tests=in_file(T_WEIGHTS, [_SHARED]),
    ),
)
