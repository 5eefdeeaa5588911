"""Presets that name VGGT: the teacher knows what they ask of it."""

from __future__ import annotations

import pytest
from sfkit_vggt.teacher import Vggt

from sfkit.factory.components import build_teacher
from sfkit.factory.resolve import find_preset


@pytest.mark.parametrize("name", ["spatial-forcing-openvla", "spatial-forcing-pi0", "rocket"])
def test_their_options_are_the_teachers(name: str) -> None:
    preset = find_preset(name)
    assert preset is not None
    teacher = build_teacher(preset.arguments["teacher"])
    assert isinstance(teacher, Vggt)
    assert (teacher.side, teacher.options.antialias, teacher.options.round_rope_angles) == (518, False, True)
    assert teacher.fill == 1.0, "white"
    for blocks in (18, 32):
        arguments = preset.arguments_for(blocks)
        layers = [pair["teacher_layer"] for pair in arguments.get("pairs", [arguments])]
        assert max(layers) <= teacher.num_layers == 24
        assert {teacher.dim(layer) for layer in layers} == {2048}
