"""The ``sf`` block: generated, read by draccus, turned into arguments of ``wrap``."""

from __future__ import annotations

import dataclasses
import inspect

import draccus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot_policy_spatial_forcing import CONFIGS, SpatialForcingOptions
from lerobot_policy_spatial_forcing.options import read_text

from sfkit import SpatialForcing
from sfkit.config import SpatialForcingConfig
from sfkit.errors import ConfigError
from sfkit.factory.components import build_schedule


def parse(*flags: str):
    return draccus.parse(SpatialForcingOptions, args=list(flags))


def test_every_configuration_field_has_its_default() -> None:
    made = {field.name: field for field in dataclasses.fields(SpatialForcingOptions)}
    for name, info in SpatialForcingConfig.model_fields.items():
        assert made[name].metadata["help"] == info.description
    assert {"teacher", "student_layer", "teacher_layer"} <= set(made)
    for name in ("seed", "self_check"):
        assert made[name].default == SpatialForcingConfig.model_fields[name].default
    for name in ("preset", "weight", "objective", "projector", "transforms", "schedule", "shared_projector"):
        assert made[name].default is None, "left to the preset, or to sfkit"
    assert {*made} - {"base_config", "options"} <= set(inspect.signature(SpatialForcing.wrap).parameters)


def test_flags_become_arguments() -> None:
    flags = ["--teacher=geometry", "--student_layer=8", "--weight=0.25", "--self_check=false", "--recompute=none"]
    arguments = parse(*flags).wrap_arguments()
    chosen = {"teacher": "geometry", "student_layer": 8, "weight": 0.25, "self_check": False, "recompute": "none"}
    assert {key: arguments[key] for key in chosen} == chosen
    assert not {"teacher_layer", "pairs", "adapter", "cameras", "base_config"} & set(arguments)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ('--teacher={"name": "geometry", "frame": "world"}', "teacher", {"name": "geometry", "frame": "world"}),
        ('--teacher={"name": "x", "a": true, "b": null}', "teacher", {"name": "x", "a": True, "b": None}),
        ("--teacher={name: geometry, cells: 3}", "teacher", {"name": "geometry", "cells": 3}),
        (
            '--pairs=[[4, "geometry"], [8, {"name": "x"}, 1, 0.5]]',
            "pairs",
            [[4, "geometry"], [8, {"name": "x"}, 1, 0.5]],
        ),
    ],
)
def test_options_of_components_are_json(flag, name, value) -> None:
    assert parse(flag).wrap_arguments()[name] == value


def test_a_single_name_stands_for_a_list_of_one() -> None:
    assert parse("--teacher=x", "--transforms=one").wrap_arguments()["transforms"] == ["one"]
    assert parse("--teacher=x", "--transforms=[one, two]").wrap_arguments()["transforms"] == ["one", "two"]
    assert parse('--pairs={"student_layer": 2, "teacher": "x"}').wrap_arguments()["pairs"] == [
        {"student_layer": 2, "teacher": "x"}
    ]
    assert "transforms" not in parse("--teacher=x").wrap_arguments()


@pytest.mark.parametrize(
    ("flags", "described"),
    [
        (["--schedule=constant"], "constant"),
        (["--schedule=cosine:100"], "cosine(steps=100)"),
        (['--schedule={"name": "linear", "steps": 9, "to": 0.1}'], "linear(steps=9, to=0.1)"),
        (['--schedule=["warm-up:5", {"name": "stop", "at": 50}]'], "warm-up(steps=5) × stop(at=50)"),
        (["--schedule=[warm-up:5, every:2]"], "warm-up(steps=5) × every(n=2)"),
    ],
)
def test_a_schedule_is_a_name_or_json_and_reads_back(flags, described) -> None:
    block = parse("--teacher=x", *flags)
    for made in (block, draccus.decode(SpatialForcingOptions, draccus.encode(block))):
        assert build_schedule(made.wrap_arguments()["schedule"]).describe() == described


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    )
)
def test_what_is_saved_reads_back(options) -> None:
    block = SpatialForcingOptions(teacher=str({"name": "geometry", **options}))
    again = draccus.decode(SpatialForcingOptions, draccus.encode(block))
    assert again.wrap_arguments() == block.wrap_arguments()
    assert again.wrap_arguments()["teacher"] == {"name": "geometry", **options}


def test_only_given_options_override_a_preset() -> None:
    known = {"seed", "health", "self_check"}
    assert {*parse("--preset=rocket").wrap_arguments()} - known == {"preset"}
    arguments = parse(
        "--preset=repa", "--weight=0.25", "--shared_projector=false", "--student_layer=encoder"
    ).wrap_arguments()
    chosen = {"preset": "repa", "weight": 0.25, "shared_projector": False, "student_layer": "encoder"}
    assert {key: value for key, value in arguments.items() if key not in known} == chosen


def test_bad_input_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"No teacher.*\n.*--policy\.sf\.teacher=geometry"):
        parse().wrap_arguments()
    with pytest.raises(ConfigError, match=r"--policy\.sf\.teacher cannot be read"):
        read_text("{'name': ", "--policy.sf.teacher")


def test_an_unknown_teacher_is_an_error_that_says_what_there_is(make, plain) -> None:
    with pytest.raises(ConfigError, match="geometry"):
        make("sf_smolvla", {"teacher": "geometri"}, pretrained_path=plain)


@pytest.mark.parametrize("kind", ["sf_smolvla", "sf_pi0", "sf_pi05"])
def test_the_configuration_is_lerobots_and_the_block(kind) -> None:
    config = CONFIGS[kind](device="cpu", chunk_size=7, n_action_steps=7)
    assert config.type == kind
    plain = config.plain()
    assert plain.type == kind.removeprefix("sf_")
    assert plain.chunk_size == 7
    base = {field.name for field in dataclasses.fields(plain)}
    assert {field.name for field in dataclasses.fields(config)} - base == {"sf"}
    assert "sf" not in draccus.encode(plain)
