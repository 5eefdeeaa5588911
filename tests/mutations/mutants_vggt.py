"""Mutants that tests of the VGGT plugin must notice, on its real trunk."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

HERE = "plugins/sfkit-vggt/src/sfkit_vggt"
AGGREGATOR, TEACHER = f"{HERE}/aggregator.py", f"{HERE}/teacher.py"
HOST, RESAMPLE, PICTURES = "sfkit/alignment/host.py", "sfkit/alignment/resample.py", "sfkit/teachers/pictures.py"
NETWORK, PATCHES, ROPE = "sfkit/teachers/network.py", "sfkit/trunks/patches.py", "sfkit/trunks/rope.py"
WEIGHTS = "sfkit/trunks/weights.py"

_TESTS = "plugins/sfkit-vggt/tests"
T_FAULTS, T_LOADING, T_PARITY = (f"{_TESTS}/test_vggt_{name}.py" for name in ("faults", "loading", "parity"))

_SQUARE = "test_fault_19_a_teacher_grid_that_is_not_square_meets_a_square_student"
_OWN_CELL = "test_fault_20_the_cell_that_moves_is_the_patch_that_moved"
_RECORDED = "test_fault_20_recorded_outputs_are_given_again"
_BLANK = "test_fault_23_a_blank_camera_never_touches_real_ones"
_FROZEN = "test_fault_28_the_teacher_is_frozen_and_nowhere_in_the_policy"
_TABLES = "test_fault_36_rotary_tables_do_not_depend_on_what_was_called_before"
_GRID = "grid = (1, 1) if single else (h // self.patch, w // self.patch)"
_NORMALISED = "imagenet_normalised(images.flatten(0, 1).float())"
_RANGE = "if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):"

VGGT = (
    # ------------------------------------------------------------------------------------------------------ grids
    Mutant(
        fault=19,
        what="the teacher's grid has rows and columns exchanged",
        file=TEACHER,
        old=_GRID,
        new="grid = (1, 1) if single else (w // self.patch, h // self.patch)",
        tests=in_file(T_FAULTS, [_SQUARE]),
    ),
    Mutant(
        fault=19,
        what="the student's grid is reached by one factor for both sides",
        file=RESAMPLE,
        old="    shrinking = x.shape",
        new="    factor = (size[0] * size[1] / (x.shape[-2] * x.shape[-1])) ** 0.5\n"
        "    size = (int(x.shape[-2] * factor), int(x.shape[-1] * factor))\n"
        "    shrinking = x.shape",
        tests=in_file(T_FAULTS, [_SQUARE]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=20,
        what="the teacher's grid has rows and columns exchanged",
        file=TEACHER,
        old=_GRID,
        new="grid = (1, 1) if single else (w // self.patch, h // self.patch)",
        tests=in_file(T_FAULTS, [_OWN_CELL]),
    ),
    Mutant(
        fault=20,
        what="patches are read column by column",
        file=PATCHES,
        old="return maps.flatten(2).transpose(1, 2)",
        new="return maps.mT.flatten(2).transpose(1, 2)",
        tests=(*in_file(T_FAULTS, [_OWN_CELL]), *in_file(T_PARITY, [_RECORDED])),
    ),
    Mutant(
        fault=20,
        what="the first half of a head turns by the column",
        file=ROPE,
        old="torch.stack((row, column), -1)",
        new="torch.stack((column, row), -1)",
        tests=in_file(T_PARITY, [_RECORDED]),
    ),
    Mutant(
        fault=20,
        what="positions are resized to exchanged sides",
        file=PATCHES,
        old="F.interpolate(square, size=grid,",
        new="F.interpolate(square, size=grid[::-1],",
        tests=in_file(T_PARITY, [_RECORDED]),
    ),
    # ------------------------------------------------------------------------------------------------------ views
    Mutant(
        fault=23,
        what="a joint teacher is shown the cameras that are not there",
        file=HOST,
        old="            if not self.teacher.drops_absent:\n",
        new="            if True:\n",
        tests=in_file(T_FAULTS, [_BLANK]),
    ),
    Mutant(
        fault=23,
        what="VGGT says that its views are independent",
        file=TEACHER,
        old='    prefix = "aggregator."\n',
        new='    prefix = "aggregator."\n    drops_absent = False\n',
        tests=in_file(T_FAULTS, [_BLANK]),
    ),
    Mutant(
        fault=26,
        what="the range of the pictures is not looked at",
        file=PICTURES,
        old=_RANGE,
        new="if False:",
        tests=in_file(T_FAULTS, ["test_fault_26_pictures_outside_0_1_are_an_error"]),
    ),
    Mutant(
        fault=26,
        what="NaN passes for a value in range",
        file=PICTURES,
        old=_RANGE,
        new="if low < -_TOLERANCE or high > 1 + _TOLERANCE:",
        tests=(f"{T_FAULTS}::test_fault_26_pictures_outside_0_1_are_an_error[NaN]",),
    ),
    Mutant(
        fault=26,
        what="the trunk does not normalise",
        file=AGGREGATOR,
        old=_NORMALISED,
        new="images.flatten(0, 1).float()",
        tests=in_file(T_FAULTS, ["test_fault_26_the_trunk_normalises_exactly_once"]),
    ),
    Mutant(
        fault=26,
        what="the trunk normalises twice",
        file=AGGREGATOR,
        old=_NORMALISED,
        new="imagenet_normalised(imagenet_normalised(images.flatten(0, 1).float()))",
        tests=in_file(T_FAULTS, ["test_fault_26_the_trunk_normalises_exactly_once"]),
    ),
    # ---------------------------------------------------------------------------------------------------- weights
    Mutant(
        fault=28,
        what="the teacher stays in training mode",
        file=HOST,
        old="self._model.to(device).eval().requires_grad_(False)",
        new="self._model.to(device).requires_grad_(False)",
        tests=in_file(T_FAULTS, [_FROZEN]),
    ),
    Mutant(
        fault=28,
        what="the teacher is trainable",
        file=HOST,
        old="self._model.to(device).eval().requires_grad_(False)",
        new="self._model.to(device).eval().requires_grad_()",
        tests=in_file(T_FAULTS, [_FROZEN]),
    ),
    Mutant(
        fault=28,
        what="the teacher is in the policy's module tree",
        file=HOST,
        old="class TeacherHost:\n",
        new="class TeacherHost(nn.Module):\n",
        also=(
            Edit(
                HOST, "        self.teacher = teacher\n", "        super().__init__()\n        self.teacher = teacher\n"
            ),
            Edit("sfkit/aligner.py", "self.hosts = plan.hosts", "self.hosts = nn.ModuleList(plan.hosts)"),
        ),
        tests=in_file(T_FAULTS, [_FROZEN]),
    ),
    Mutant(
        fault=29,
        what="keys are not checked, and what is not in the file keeps random values",
        file=WEIGHTS,
        old="    if faults:\n",
        new="    if False:\n",
        also=(
            Edit(WEIGHTS, "            for key in keys:\n", "            for key in keys & shapes.keys():\n"),
            Edit(WEIGHTS, "_shares(wanted):\n", "map(set, _shares(wanted)):\n"),
            Edit(
                WEIGHTS,
                "    placed = value.to(device=device, dtype=old.dtype, copy=True)\n",
                "    placed = torch.zeros_like(old, device=device)\n",
            ),
        ),
        tests=in_file(
            T_LOADING, ["test_fault_29_a_renamed_prefix_is_an_error", "test_fault_29_keys_are_checked_strictly"]
        ),
    ),
    Mutant(
        fault=29,
        what="whatever is in the file is taken for a head",
        file=TEACHER,
        old='ignored = ("camera_head.*",',
        new='ignored = ("*", "camera_head.*",',
        tests=(
            f"{T_LOADING}::test_fault_29_keys_are_checked_strictly[unexpected in the trunk]",
            f"{T_LOADING}::test_fault_29_keys_are_checked_strictly[unexpected beside it]",
        ),
    ),
    # ----------------------------------------------------------------------------------------------------- tables
    Mutant(
        fault=36,
        what="the first call decides whether the angles are rounded",
        file=AGGREGATOR,
        old="self._ropes.get((grid, views, self.round_angles, device),",
        new="self._ropes.get((grid, views, device),",
        tests=in_file(T_FAULTS, [_TABLES]),
    ),
    Mutant(
        fault=36,
        what="angles are computed by a product that autocast rounds",
        file=ROPE,
        old="(places.unsqueeze(-1) * frequencies).float()",
        new="(places.reshape(-1, 1) @ frequencies.reshape(1, -1)).reshape(*places.shape, -1).float()",
        tests=in_file(T_FAULTS, ["test_fault_36_autocast_does_not_round_the_tables"]),
    ),
    Mutant(
        fault=36,
        what="the option is not passed on",
        file=TEACHER,
        old="round_angles=self.options.round_rope_angles",
        new="round_angles=False",
        tests=in_file(T_FAULTS, ["test_fault_36_rounding_is_an_option_and_off"]),
    ),
    # --------------------------------------------------------------------------------------------- random numbers
    Mutant(
        fault=51,
        what="building the network draws from the global generator",
        file=NETWORK,
        old="            with own_rng():\n",
        new="            if True:\n",
        tests=in_file(T_FAULTS, ["test_fault_51_a_teacher_on_its_own_draws_none_either"]),
    ),
    Mutant(
        fault=51,
        what="nobody guards the random state when the teacher is loaded and run",
        file=NETWORK,
        old="            with own_rng():\n",
        new="            if True:\n",
        also=(
            Edit(HOST, "            own_rng(device),\n", ""),
            Edit(HOST, "            with own_rng(device, seed=0):\n", "            if True:\n"),
        ),
        tests=(f"{T_FAULTS}::test_fault_51_neither_loading_nor_encoding_draws_random_numbers[False]",),
    ),
)
