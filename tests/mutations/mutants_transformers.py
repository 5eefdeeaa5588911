"""Mutants that tests of the transformers plugin must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

HERE = "plugins/sfkit-transformers/src/sfkit_transformers"
BACKBONE, CHECKPOINT, TEACHER = f"{HERE}/backbone.py", f"{HERE}/checkpoint.py", f"{HERE}/teacher.py"
FAMILIES, PREPROCESSING, PICTURES = f"{HERE}/families.py", f"{HERE}/preprocessing.py", "sfkit/teachers/pictures.py"

_TESTS = "plugins/sfkit-transformers/tests"
T_FAMILIES, T_LOADING, T_TEACHER = (f"{_TESTS}/test_{name}.py" for name in ("families", "loading", "teacher"))

_WIDE = "test_fault_19_pictures_that_are_not_square_give_grids_that_are_not_square"
_OWN = "test_fault_20_a_changed_patch_moves_its_own_feature_most"
_ONCE = "test_fault_26_pictures_are_normalised_exactly_once_as_the_processor_does"
_RANGE = "test_fault_26_pictures_in_another_range_are_refused"
_MISSING = "test_fault_29_a_missing_tensor_is_an_error_that_names_it"

_GRID = ".reshape(len(tokens), rows, columns, -1)"
_NORMALISED = "(pictures - self.mean) / self.std"

TRANSFORMERS = (
    Mutant(
        fault=19,
        what="the grid of patches has rows and columns exchanged",
        file=BACKBONE,
        old=_GRID,
        new=".reshape(len(tokens), columns, rows, -1)",
        tests=in_file(T_FAMILIES, [f"{_WIDE}[dinov2]"]),
    ),
    Mutant(
        fault=20,
        what="patches are laid out column by column",
        file=BACKBONE,
        old=_GRID,
        new=".reshape(len(tokens), columns, rows, -1).transpose(1, 2)",
        tests=in_file(T_FAMILIES, [f"{_OWN}[square-dinov2]", f"{_OWN}[wide-siglip]"]),
    ),
    Mutant(
        fault=20,
        what="the class token is taken for the first patch, and the last patch is dropped",
        file=BACKBONE,
        old="return tokens[:, self.prefix :]",
        new="return tokens[:, : rows * columns]",
        tests=in_file(T_FAMILIES, [f"{_OWN}[square-vit]", f"{_OWN}[square-dinov2_registers]"]),
    ),
    Mutant(
        fault=20,
        what="flattened patches are in the order of columns",
        file=BACKBONE,
        old="cut.permute(0, 2, 4, 3, 5, 1)",
        new="cut.permute(0, 4, 2, 3, 5, 1)",
        tests=in_file(T_FAMILIES, [f"{_OWN}[square-siglip2_naflex]"]),
    ),
    Mutant(
        fault=26,
        what="pictures are not normalised",
        file=BACKBONE,
        old=_NORMALISED,
        new="pictures",
        tests=in_file(T_TEACHER, [_ONCE]),
    ),
    Mutant(
        fault=26,
        what="pictures are normalised twice",
        file=BACKBONE,
        old=_NORMALISED,
        new="((pictures - self.mean) / self.std - self.mean) / self.std",
        tests=in_file(T_TEACHER, [_ONCE]),
    ),
    Mutant(
        fault=26,
        what="mean and deviation are those of ImageNet whatever the model's processor says",
        file=PREPROCESSING,
        old="return Preprocessing(tuple(m / scale for m in means), tuple(d / scale for d in deviations), size)",
        new="return Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size)",
        tests=in_file(T_TEACHER, [f"{_ONCE}[siglip]"]),
    ),
    Mutant(
        fault=26,
        what="the range of pictures is not looked at",
        file=PICTURES,
        old="            self._check_range(views)\n",
        new="",
        tests=in_file(T_TEACHER, [_RANGE]),
    ),
    Mutant(
        fault=29,
        what="what transformers reports of the keys is not looked at",
        file=CHECKPOINT,
        old="        self._check(report, tuple(ignored))\n",
        new="",
        tests=in_file(
            T_LOADING,
            [
                _MISSING,
                "test_fault_29_a_file_with_more_layers_than_the_config_is_an_error",
                "test_fault_29_another_shape_is_an_error_that_names_both",
            ],
        ),
    ),
    Mutant(
        fault=29,
        what="the option for further parts of a file excuses missing weights",
        file=CHECKPOINT,
        old='("missing", report["missing_keys"], _BESIDE)',
        new='("missing", report["missing_keys"], (*_BESIDE, *ignored))',
        tests=in_file(T_LOADING, ["test_fault_29_the_option_ignore_does_not_excuse_missing_weights"]),
    ),
    Mutant(
        fault=29,
        what="the network is built from its configuration and never given the weights",
        file=CHECKPOINT,
        old="        network = _backbone_alone(model, config) if _in_backbone(config) else model\n",
        new="        network = transformers.AutoModel.from_config(vision_config(config))\n",
        tests=in_file(T_LOADING, ["test_fault_29_the_loaded_weights_are_those_of_the_file"]),
    ),
)
