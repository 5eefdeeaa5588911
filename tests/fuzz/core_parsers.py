"""The parsers of the core: checkpoints, configurations, components, calibration, tensors, the command line."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import data_parsers
import hostile
import torch
from hostile import Place, mutated, python_values
from hypothesis import strategies as st
from running import Parser

from sfkit import SpatialForcing
from sfkit.config import ComponentSpec, HealthOptions, Options, PairConfig, SpatialForcingConfig
from sfkit.factory.components import (
    build_adapter,
    build_objective,
    build_projector,
    build_schedule,
    build_teacher,
    build_transforms,
)
from sfkit.factory.resolve import find_preset, read_pairs
from sfkit.registry.registry import Kind, default_registry
from sfkit.saving import checkpoint
from sfkit.saving.hub import CONFIG, FOLDER, PROJECTOR
from sfkit.testing.tiny import TinyAdapter, TinyPolicy
from sfkit.utils.places import read_json

GENERIC = {
    "name": "generic",
    "options": {
        "blocks": "blocks", "tokens": {"start": 0, "length": 32}, "grid": [2, 4, 4], "images": "images",
        "pixels": "[0,1]",
    },
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- checkpoints


@cache
def saved() -> Mapping[str, bytes]:
    """The files that a sound run saves, by name."""
    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(
        policy, "geometry", student_layer=2, adapter=GENERIC, schedule=["cosine:10", "conflict"], weight="balance:0.1",
        projector=("mlp", {"hidden": 8}), transforms=["layer-norm"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        policy.spatial_forcing.save(folder)  # type: ignore[union-attr, operator]
        return {name: (Path(folder) / FOLDER / name).read_bytes() for name in (CONFIG, PROJECTOR)}


def saved_config() -> Any:
    """The saved configuration as Python values."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(saved()[CONFIG])
        return read_json(Path(folder) / CONFIG)


def _in_checkpoint(name: str, place: Place, folder: Path) -> Path:
    (folder / FOLDER).mkdir()
    for other, content in saved().items():
        (place if other == name else Place(content)).make(folder / FOLDER / other)
    return folder


def read_checkpoint_config(place: Place, folder: Path) -> object:
    return checkpoint.read(checkpoint.locate(_in_checkpoint(CONFIG, place, folder))).config


def load_checkpoint(place: Place, folder: Path) -> object:
    torch.manual_seed(0)
    return SpatialForcing.from_pretrained(TinyPolicy(), _in_checkpoint(CONFIG, place, folder))


def load_projector(place: Place, folder: Path) -> object:
    torch.manual_seed(0)
    return SpatialForcing.from_pretrained(TinyPolicy(), _in_checkpoint(PROJECTOR, place, folder))


CHANGES = {"geometry": {}, "mlp": {"hidden": 8}}


def locate_checkpoint(value: tuple[str, Any], folder: Path) -> object:
    source, options = value
    _in_checkpoint(CONFIG, Place(saved()[CONFIG]), folder)
    return SpatialForcing.from_pretrained(TinyPolicy(), source or folder, options=options)


# -------------------------------------------------------------------------------------------------- configurations


def read_config(value: Any, folder: Path) -> object:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        with contextlib.suppress(TypeError):  # "self" is no keyword
            SpatialForcingConfig(**value)
    return SpatialForcingConfig.parse("a configuration", value)


def read_health(value: Any, folder: Path) -> object:
    HealthOptions.parse("health", value)
    return wrapped({"teacher": "geometry", "student_layer": 2, "health": value})


def wrapped(arguments: Mapping[str, Any]) -> object:
    policy = TinyPolicy()
    given = {"adapter": TinyAdapter(policy), **arguments}
    return SpatialForcing.wrap(policy, given.pop("teacher", None), **given)


ARGUMENTS = (
    *("teacher", "student_layer", "teacher_layer", "preset", "weight", "schedule", "objective", "projector"),
    *("transforms", "pairs", "shared_projector", "pair_reduction", "adapter", "cameras", "attach_loss"),
    *("grad_accumulation", "recompute", "seed", "health", "self_check"),
)  # fmt: skip
PAIR = {
    "student_layer": 2,
    "teacher": "geometry",
    "teacher_layer": 1,
    "weight": 1.0,
    "future": 0,
    "objective": "cosine",
}
keywords = st.dictionaries(st.sampled_from(ARGUMENTS), python_values, max_size=2).map(
    lambda given: {"teacher": "geometry", "student_layer": 2, **given}
)
pairs = st.lists(mutated(st.just(PAIR), python_values) | st.tuples(python_values, python_values), max_size=2).map(
    lambda given: {"pairs": given}
)
weights = st.one_of(
    python_values,
    st.text(max_size=6).map(lambda text: f"balance:{text}"),
    st.sampled_from(hostile.NUMBERS).map(lambda number: f"balance:{number}"),
)


ONE = {"teacher": "geometry", "student_layer": 2}


def wrapped_with(name: str) -> Callable[[Any, Path], object]:
    def wrap(value: Any, folder: Path) -> object:
        return wrapped({**ONE, name: value})

    return wrap


def read_weights(value: tuple[Any, Any], folder: Path) -> object:
    weight, schedule = value
    return wrapped({"teacher": "geometry", "student_layer": 2, "weight": weight, "schedule": schedule})


# ------------------------------------------------------------------------------------------------------ components

BUILD: dict[Kind, Callable[[Any], object]] = {
    "teacher": build_teacher,
    "objective": build_objective,
    "projector": lambda value: build_projector(value, 16, 12, 0),
    "transform": lambda value: build_transforms([value], 12),
    "schedule": build_schedule,
    "policy": lambda value: build_adapter(TinyPolicy(), value),
    "preset": find_preset,
}


@st.composite
def components(draw: st.DrawFn, kind: Kind) -> Any:
    """A name, name with options, or mapping: of a component that is installed, mostly, with its own options."""
    entries = [entry for entry in default_registry().of_kind(kind) if entry.name != "hf"]
    entry = draw(st.sampled_from(entries))
    name = draw(st.one_of(st.just(entry.name), st.just(entry.name), st.sampled_from(hostile.TEXTS)))
    if draw(st.integers(0, 4)) == 0:
        name += ":" + draw(st.sampled_from(hostile.TEXTS) | st.integers().map(str))
    model = getattr(entry.load(), "Options", None)
    known = sorted(model.model_fields) if isinstance(model, type) and issubclass(model, Options) else []
    keys = st.sampled_from(known or ["a"]) | st.sampled_from(hostile.TEXTS)
    options = draw(st.dictionaries(keys, st.sampled_from(hostile.NUMBERS) | python_values, max_size=3))
    if kind == "policy" and name == "generic":
        options = {**GENERIC["options"], **options}  # type: ignore[dict-item]
    form = draw(st.integers(0, 5))
    if form == 0:
        return name
    if form == 1:
        return (name, draw(python_values))
    if form == 2:
        return draw(mutated(st.just({"name": name, "options": options}), python_values))
    return (name, options) if form < 5 else {"name": name, **options}


def component(kind: Kind) -> Callable[[Any, Path], object]:
    def read(value: Any, folder: Path) -> object:
        return BUILD[kind](value)

    return read


def read_spec(value: Any, folder: Path) -> object:
    return ComponentSpec.of(value)


def read_pair(value: Any, folder: Path) -> object:
    for one in read_pairs({"pairs": value}):
        PairConfig.parse("a pair", one)
    return value


def parsers() -> list[Parser]:
    """All parsers of the core."""
    good, tensor_files = st.builds(saved_config), hostile.places(hostile.tensor_files(saved()[PROJECTOR]))
    kinds: tuple[Kind, ...] = ("teacher", "objective", "projector", "transform", "schedule", "policy", "preset")
    return [
        Parser("config.json of a checkpoint", hostile.documents(good), read_checkpoint_config, 2),
        Parser("from_pretrained, by its config.json", hostile.documents(good), load_checkpoint),
        Parser("from_pretrained, by its projector", tensor_files, load_projector),
        Parser(
            "from_pretrained, by source and options",
            st.tuples(st.sampled_from(("", "", *hostile.TEXTS)), mutated(st.just(CHANGES), python_values)),
            locate_checkpoint, 0.3,
        ),
        Parser("SpatialForcingConfig", mutated(good.map(lambda it: it["config"]), python_values), read_config, 2),
        Parser("wrap, by its keywords", keywords, lambda value, _: wrapped(value)),
        Parser("wrap, by its pairs", pairs, lambda value, _: wrapped(value)),
        Parser("pairs", python_values | st.lists(python_values | mutated(st.just(PAIR), python_values)), read_pair),
        Parser("weights and schedules", st.tuples(weights, python_values | components("schedule")), read_weights),
        Parser("options of health", mutated(st.just(HealthOptions().model_dump()), python_values), read_health),
        *(Parser(f"{kind} by name and options", components(kind), component(kind)) for kind in kinds),
        Parser("wrap, by a teacher's options", components("teacher"), wrapped_with("teacher")),
        Parser("wrap, by an objective's options", components("objective"), wrapped_with("objective")),
        Parser("components", python_values | components("projector"), read_spec),
        *data_parsers.parsers(tensor_files),
    ]  # fmt: skip
