from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfkit import SpatialForcing
from sfkit.config import ComponentSpec, PairConfig, SpatialForcingConfig
from sfkit.errors import ConfigError

names = st.text("abcdef", min_size=1, max_size=5)
integers = st.integers(-(2**53), 2**53)
specs = st.builds(ComponentSpec, name=names, options=st.dictionaries(names, integers | st.booleans(), max_size=3))
pairs = st.builds(
    PairConfig,
    student_layer=st.integers(0, 40),
    teacher=specs,
    teacher_layer=st.integers(1, 30),
    weight=st.floats(0.1, 10),
)


@given(specs, st.lists(pairs, min_size=1, max_size=3, unique_by=lambda p: p.student_layer), st.floats(0, 100))
def test_configs_survive_json(spec: ComponentSpec, some: list[PairConfig], weight: float) -> None:
    config = SpatialForcingConfig(adapter=spec, pairs=tuple(some), weight=weight)
    assert SpatialForcingConfig.model_validate_json(config.model_dump_json()) == config


def test_a_component_is_read_from_every_documented_form() -> None:
    expected = ComponentSpec(name="geometry", options={"frame": "world"})
    for form in (("geometry", {"frame": "world"}), {"name": "geometry", "frame": "world"}, expected):
        assert ComponentSpec.of(form) == expected
    assert ComponentSpec.of("geometry") == ComponentSpec(name="geometry")
    with pytest.raises(ConfigError, match="Cannot read a component"):
        ComponentSpec.of(3)


def test_bad_options_name_the_field_and_the_nearest_valid_one() -> None:
    with pytest.raises(ConfigError, match=r"wieght.*Did you mean 'weight'") as caught:
        SpatialForcingConfig.parse("SpatialForcing", {"wieght": 1})
    assert "Valid options: adapter, pairs" in caught.value.remedy
    with pytest.raises(ConfigError, match="weight"):
        SpatialForcingConfig.parse("x", {"adapter": "a", "pairs": [], "weight": -1})


def test_the_same_pair_twice_is_refused() -> None:
    pair = PairConfig(student_layer=1, teacher=ComponentSpec(name="t"), teacher_layer=1)
    with pytest.raises(ConfigError, match="listed twice"):
        SpatialForcingConfig.parse("x", {"adapter": "a", "pairs": [pair, pair]})


def test_fault_35_negative_layers_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="student_layer"):
        PairConfig.parse("pair", {"student_layer": -1, "teacher": "t", "teacher_layer": 1})


def test_wrap_takes_every_option_of_the_configuration() -> None:
    parameters = dict(inspect.signature(SpatialForcing.wrap).parameters)
    beside = {"policy", "teacher", "student_layer", "teacher_layer", "preset", "cameras", "verbose"}
    assert parameters.keys() - beside == SpatialForcingConfig.model_fields.keys()
    for name, field in SpatialForcingConfig.model_fields.items():
        # None leaves the choice to the preset, and then to the configuration.
        assert parameters[name].default in (None, field.get_default(call_default_factory=True)), name


def test_the_docstring_of_wrap_explains_every_argument() -> None:
    text = SpatialForcing.wrap.__doc__ or ""
    assert [
        name for name in inspect.signature(SpatialForcing.wrap).parameters if f"            {name}: " not in text
    ] == []
