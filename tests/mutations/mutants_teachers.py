"""Mutants of teachers: what they are shown, that they stay frozen, and the geometry teacher's units."""

from __future__ import annotations

from mutant import Edit, Mutant, in_file

ALIGNER = "sfkit/aligner.py"
CAMERAS = "sfkit/cameras.py"
HOST = "sfkit/alignment/host.py"
GEOMETRY = "sfkit/teachers/geometry.py"

T_HOST = "tests/alignment/test_host.py"
T_TEACHER = "tests/teachers/test_geometry_teacher.py"
T_WRAP = "tests/test_wrap.py"

TEACHERS = (
    Mutant(
        fault=23,
        what="a joint teacher is shown the cameras that are not there",
        file=HOST,
        old="            if not self.teacher.drops_absent:\n",
        new="            if True:\n",
        tests=in_file(T_HOST, ["test_fault_23_an_absent_view_never_touches_a_real_one"]),
    ),
    Mutant(
        fault=23,
        what="samples with different cameras go to the teacher together",
        file=HOST,
        old="        for pattern in sorted({tuple(row) for row in rows}):\n",
        new="        rows = [[any(column) for column in zip(*rows)]] * len(rows)\n"
        "        for pattern in {tuple(row) for row in rows}:\n",
        tests=in_file(T_HOST, ["test_fault_23_an_absent_view_never_touches_a_real_one"]),
    ),
    Mutant(
        fault=28,
        what="the teacher stays trainable and in the mode in which its author left it",
        file=HOST,
        old="self._model.to(device).eval().requires_grad_(False)",
        new="self._model.to(device)",
        tests=in_file(T_HOST, ["test_fault_28_the_teacher_is_frozen_whatever_its_author_left"]),
    ),
    Mutant(
        fault=28,
        what="the teacher is not frozen",
        file=HOST,
        old="self._model.to(device).eval().requires_grad_(False)",
        new="self._model.to(device).eval()",
        tests=in_file(T_HOST, ["test_fault_28_the_teacher_is_frozen_whatever_its_author_left"]),
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
            Edit(ALIGNER, "self.hosts = plan.hosts", "self.hosts = nn.ModuleList(plan.hosts)"),
        ),
        tests=in_file(T_WRAP, ["test_fault_28_the_teacher_is_nowhere_in_the_policy"]),
    ),
    Mutant(
        fault=54,
        what="a depth unit that is not recorded is taken for metres",
        file=CAMERAS,
        old="unit = self.cameras[key].depth_unit\n",
        new='unit = self.cameras[key].depth_unit or "m"\n',
        tests=("tests/test_cameras.py::test_fault_54_depth_units_are_never_guessed",),
    ),
    Mutant(
        fault=54,
        what="pixels without depth take part in a normal",
        file="sfkit/teachers/surfaces.py",
        old="    kept = valid.reshape(shape).float()\n",
        new="    kept = torch.ones(shape)\n",
        tests=(
            "tests/teachers/test_surfaces.py::"
            "test_fault_54_pixels_without_depth_are_left_out_and_cells_of_them_undefined",
        ),
    ),
    Mutant(
        fault=54,
        what="millimetres are taken for metres",
        file=CAMERAS,
        old='"mm": 0.001',
        new='"mm": 1.0',
        tests=("tests/test_cameras.py::test_fault_54_depth_units_are_never_guessed",),
    ),
    Mutant(
        fault=54,
        what="depth next to 0 is taken for near",
        file=GEOMETRY,
        old="(depth >= self.options.depth_min)",
        new="(depth >= 0)",
        tests=(
            f"{T_TEACHER}::test_fault_54_invalid_depth_is_masked_and_never_a_target[0.0]",
            f"{T_TEACHER}::test_fault_54_invalid_depth_is_masked_and_never_a_target[0.01]",
        ),
    ),
    Mutant(
        fault=54,
        what="depth out of range is a target",
        file=GEOMETRY,
        old=" & (depth <= self.options.depth_max)",
        new="",
        tests=(f"{T_TEACHER}::test_fault_54_invalid_depth_is_masked_and_never_a_target[113.0]",),
    ),
    Mutant(
        fault=25,
        what="the mean of each patch position is kept by the place of a camera, not by its name",
        file=GEOMETRY,
        old="return {name: (values[:, i], mask[:, i]) for i, name in enumerate(views.names)}",
        new="return {str(i): (values[:, i], mask[:, i]) for i, name in enumerate(views.names)}",
        also=(
            Edit(
                GEOMETRY,
                "[self._moments.mean(name) for name in names]",
                "[self._moments.mean(str(i)) for i, name in enumerate(names)]",
            ),
        ),
        tests=(f"{T_TEACHER}::test_fault_25_position_means_belong_to_the_camera_and_not_to_its_place",),
    ),
    Mutant(
        fault=25,
        what="the means of one order of cameras are used for another",
        file=GEOMETRY,
        old="or self._standard[0] != names or ",
        new="or ",
        tests=(f"{T_TEACHER}::test_fault_25_position_means_belong_to_the_camera_and_not_to_its_place",),
    ),
)
