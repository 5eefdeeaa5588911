"""The ``sf`` block of the command line, generated from sfkit's own configuration so that nothing is written twice."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic.fields import FieldInfo

from lerobot_policy_spatial_forcing.origin import ReadText, admitted, is_from_file
from sfkit import SpatialForcing
from sfkit.config import ComponentSpec, PairConfig, SpatialForcingConfig, beyond_bounds
from sfkit.errors import ConfigError, did_you_mean, shown

#: What is left to the preset, or to sfkit's own defaults, unless it is given.
_OF_PRESETS = frozenset(inspect.signature(SpatialForcing.wrap).parameters) - {"seed", "health", "self_check"}
_PRESET_HELP = "A published method; `sfkit presets` lists them. Explicit options override it."
_OPTIONS_HELP = (
    'Options of components, by name: {"vggt": {"weights": "/data/vggt.safetensors"}}. What permits code, and paths '
    "that the Hub names, are given here in each run."
)
#: In a text; more come from files that are to do harm.
_MOST_BRACKETS = 1000
_SCALARS = (bool, int, float, str)


class SfOptions:
    """Base of the generated block: how its values become arguments of :meth:`sfkit.SpatialForcing.wrap`.

    Fields are those of :class:`sfkit.config.SpatialForcingConfig`, and ``teacher``, ``student_layer`` and
    ``teacher_layer`` of a single pair. Those that a preset may decide are None until they are given. What is no number
    is text: a name, or JSON such as ``{"name": "geometry", "frame": "world"}``.

    Attributes:
        preset: Name of a published method.
        adapter: Name or JSON; the one that fits the policy by default.
        cameras: Calibration file; ``meta/cameras.json`` of the dataset by default.
        options: JSON; options of components, by the component's name. What a file may not set is given here.
        base_config: Written by the program: the checkpoint whose ``config.json`` has been read.
    """

    preset: str | None
    adapter: str | None
    cameras: str | None
    options: str | None
    base_config: str | None

    def wrap_arguments(self) -> dict[str, Any]:
        """The arguments of ``wrap`` that the block stands for; what was not given is left to sfkit.

        Raises:
            ConfigError: A text that looks like JSON is not readable, or neither a teacher nor a preset was given.
        """
        known = set(inspect.signature(SpatialForcing.wrap).parameters) - {"cameras"}
        arguments = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name not in known or value is None:
                continue
            if isinstance(value, str):
                value = read_text(value, f"--policy.sf.{field.name}")
            one_of_many = field.metadata.get("many") and isinstance(value, str | Mapping)
            arguments[field.name] = [value] if one_of_many else value
        if not {"teacher", "pairs", "preset"} & arguments.keys():
            raise ConfigError("No teacher.", "Give one, for instance --policy.sf.teacher=geometry.")
        return arguments

    def admitted_arguments(self) -> dict[str, Any]:
        """:meth:`wrap_arguments`, once what a file has set of them is checked, with the block's ``options``.

        Raises:
            TrustError: A file asks for what the command line must give; the error prints the flag.
            ConfigError: As for :meth:`wrap_arguments`, or ``options`` names no component.
        """
        arguments = self.wrap_arguments()
        from_file = frozenset(name for name in arguments if is_from_file(name, getattr(self, name)))
        options = {} if self.options is None else read_text(self.options, "--policy.sf.options")
        return admitted(arguments, from_file, options, is_from_file("options", self.options))


def read_text(value: str, option: str) -> Any:
    """A name as it is; anything with brackets as data.

    Raises:
        ConfigError: It cannot be read.
    """
    text = str(value).strip()
    if not text.startswith(("{", "[", "(")):
        return text
    # draccus hands over what it has read as JSON already, printed as Python prints it.
    # Of many brackets these two take hours, or the stack.
    readers = (ast.literal_eval, yaml.safe_load) if sum(map(text.count, "[{(&*")) < _MOST_BRACKETS else ()
    for read in readers:
        try:
            found = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError, yaml.YAMLError):
            continue
        if not beyond_bounds(found):
            return found
    raise ConfigError(f"{option} cannot be read: {shown(value)}", 'Give a name, or JSON: \'{"name": "geometry"}\'.')


def refuse_unknown_flags() -> None:
    """Name the option that was meant by a wrong ``--policy.sf.*``, which argparse would list without a word of help.

    Raises:
        ConfigError: The command line has such a flag.
    """
    from lerobot.configs import parser

    known = [field.name for field in dataclasses.fields(SpatialForcingOptions)]  # type: ignore[arg-type]
    for flag in parser.get_cli_overrides("policy.sf") or []:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name not in known:
            raise ConfigError(
                f"There is no --policy.sf.{name}.{did_you_mean(name, known)}", f"Options: {', '.join(sorted(known))}."
            )


def _is_scalar(annotation: object) -> bool:
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return all(part in (*_SCALARS, types.NoneType) for part in parts)


def _as_field(name: str, info: FieldInfo) -> tuple[str, Any, Any]:
    """Name, type and default of a field as draccus understands it."""
    default = None if info.is_required() or name in _OF_PRESETS else info.get_default(call_default_factory=True)
    kept = _is_scalar(info.annotation)
    annotation: Any = info.annotation if kept else ReadText
    if default is None:
        annotation = annotation | None
    elif not kept:
        default = _as_text(default)
    return (
        name,
        annotation,
        dataclasses.field(default=default, metadata={"help": info.description, "many": _is_many(info)}),
    )


def _is_many(info: FieldInfo) -> bool:
    return typing.get_origin(info.annotation) in (tuple, list)


def _as_text(default: object) -> str:
    if isinstance(default, ComponentSpec) and not default.options:
        return default.name
    return str(default.model_dump(mode="json") if hasattr(default, "model_dump") else default)


def _generate() -> type[SfOptions]:
    single: Mapping[str, FieldInfo] = {
        name: PairConfig.model_fields[name] for name in ("teacher", "student_layer", "teacher_layer")
    }
    found = {**single, **SpatialForcingConfig.model_fields}
    own = [
        ("preset", ReadText | None, dataclasses.field(default=None, metadata={"help": _PRESET_HELP})),
        ("cameras", ReadText | None, dataclasses.field(default=None)),
        ("options", ReadText | None, dataclasses.field(default=None, metadata={"help": _OPTIONS_HELP})),
        ("base_config", str | None, dataclasses.field(default=None)),
    ]
    members = [_as_field(name, info) for name, info in found.items()]
    made = dataclasses.make_dataclass("SpatialForcingOptions", [*members, *own], bases=(SfOptions,), module=__name__)
    made.__doc__ = "Spatial forcing: what is aligned with what."
    return made


SpatialForcingOptions = _generate()
