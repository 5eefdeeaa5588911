"""From names, names with options, or instances to components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from torch import nn

from sfkit.config import ComponentSpec, one_or_several
from sfkit.errors import AdapterError, ConfigError, WrapError
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.projectors.base import Projector
from sfkit.registry.registry import default_registry
from sfkit.schedules.base import Product, Schedule
from sfkit.teachers.base import Teacher
from sfkit.transforms.base import Transform
from sfkit.utils.runtime import own_rng

Kind = TypeVar("Kind")

#: A component's name, a name with options, or (in signatures that say so) a ready instance.
ComponentLike: TypeAlias = "str | Mapping[str, Any] | tuple[str, Mapping[str, Any]] | ComponentSpec"


def build_teacher(value: ComponentLike | Teacher) -> Teacher:
    """A teacher from its name, name with options, or an instance."""
    if isinstance(value, Teacher):
        return value
    spec = ComponentSpec.of(value)
    entry = default_registry().get("teacher", spec.name)
    return _expect(entry.load()(entry.options_of(spec.name, spec.options)), Teacher, spec.name)


def build_objective(value: ComponentLike | Objective) -> Objective:
    """An objective from its name, name with options, or an instance."""
    if not isinstance(value, Objective):
        spec = ComponentSpec.of(value)
        entry = default_registry().get("objective", spec.name)
        value = _expect(entry.load()(entry.options_of(spec.name, spec.options)), Objective, spec.name)
    value.build_terms(build_objective)
    return value


def build_projector(value: ComponentLike | Projector, student_dim: int, teacher_dim: int, seed: int) -> Projector:
    """A projector of the right widths, initialized under its own generator.

    Raises:
        ConfigError: An instance was given whose widths do not fit.
    """
    if isinstance(value, Projector):
        if (value.student_dim, value.teacher_dim) != (student_dim, teacher_dim):
            raise ConfigError(
                f"The projector maps {value.student_dim} to {value.teacher_dim} channels, "
                f"this pair needs {student_dim} to {teacher_dim}.",
                "Build it with those widths, or give its name and let sfkit build it.",
            )
        return value
    spec = ComponentSpec.of(value)
    entry = default_registry().get("projector", spec.name)
    factory, options = entry.load(), entry.options_of(spec.name, spec.options)
    with own_rng(seed=seed):
        projector = factory(student_dim, teacher_dim, options)
    return _expect(projector, Projector, spec.name)


def build_transforms(values: Sequence[ComponentLike | Transform], teacher_dim: int) -> list[Transform]:
    """The transforms of one pair, for features of ``teacher_dim`` channels; empty if none are asked for.

    Resampling comes first if the sequence does not say where it belongs.

    Raises:
        ConfigError: One name or mapping instead of a sequence, or an instance for another width.
    """
    if isinstance(values, str | Mapping | Transform):
        raise ConfigError(f"transforms is {values!r}, not a list.", "Write transforms=[...], even for a single one.")
    built: list[Transform] = []
    for value in values:
        width = built[-1].out_dim if built else teacher_dim
        built.append(_build_transform(value, width))
    if built and not any(transform.resamples for transform in built):
        built.insert(0, _build_transform("resample", teacher_dim))
    return built


def _build_transform(value: ComponentLike | Transform, dim: int) -> Transform:
    if isinstance(value, Transform):
        if value.dim != dim:
            raise ConfigError(
                f"Transform {value.name!r} takes {value.dim} channels, there are {dim} where it stands.",
                "Build it for that width, or give its name and let sfkit build it.",
            )
        return value
    spec = ComponentSpec.of(value)
    entry = default_registry().get("transform", spec.name)
    return _expect(entry.load()(dim, entry.options_of(spec.name, spec.options)), Transform, spec.name)


def build_schedule(value: ComponentLike | Schedule | Sequence[ComponentLike | Schedule]) -> Product:
    """The schedules that apply together, from one or several names, names with options, or instances.

    Raises:
        ConfigError: An unknown name or bad option, or they leave no step to align.
    """
    built = []
    for item in one_or_several(value):
        if isinstance(item, Schedule):
            built.append(item)
            continue
        spec = ComponentSpec.of(item)
        entry = default_registry().get("schedule", spec.name)
        built.append(_expect(entry.load()(entry.options_of(spec.name, spec.options)), Schedule, spec.name))
    return Product(built)


def build_adapter(policy: nn.Module, value: ComponentLike | PolicyAdapter | None) -> PolicyAdapter:
    """The adapter for a policy: the one given, or the one whose patterns match its class.

    Raises:
        AdapterError: None matches, or several do.
    """
    inner = inside_peft(policy)
    if isinstance(value, PolicyAdapter):
        return value.bind(inner)
    if value is not None:
        spec = ComponentSpec.of(value)
        entry = default_registry().get("policy", spec.name)
        return _expect(entry.load()(inner, entry.options_of(spec.name, spec.options)), PolicyAdapter, spec.name)
    entries = default_registry().adapters_for(type(inner))
    if not entries:
        _refuse_unsupported(type(inner))
        installed = default_registry().of_kind("policy")
        listing = ", ".join(f"{entry.name} ({', '.join(entry.handles)})" for entry in installed) or "none"
        qualified = f"{type(inner).__module__}.{type(inner).__qualname__}"
        broken = "".join(f" Broken plugin: {plugin}." for plugin in default_registry().broken)
        raise AdapterError(
            f"No adapter handles {qualified}. Installed adapters: {listing}.{_nearest(qualified)}{broken}",
            "Install the plugin for this policy (for LeRobot: sfkit-lerobot), or pass adapter=GenericAdapter(...): "
            "`sfkit inspect` finds what it must be told.",
        )
    return _expect(entries[0].load()(inner), PolicyAdapter, entries[0].name)


def _refuse_unsupported(cls: type) -> None:
    for entry in default_registry().unsupported_for(cls):
        raise AdapterError(
            f"{entry.name} ({cls.__module__}.{cls.__qualname__}) cannot be aligned: {entry.reason}.",
            "If that no longer holds, pass adapter=YourAdapter(policy). `sfkit policies` lists what can be aligned.",
        )


def inside_peft(policy: nn.Module) -> nn.Module:
    """The base model inside a PeftModel, else the policy itself. Recognized by name: peft is not imported."""
    for cls in type(policy).__mro__:
        if cls.__module__.split(".")[0] == "peft" and cls.__name__ == "PeftModel":
            base: nn.Module = cast("Any", policy).get_base_model()
            return base
    return policy


def _nearest(qualified: str) -> str:
    import difflib

    class_name = qualified.rsplit(".", 1)[-1]
    names = {p.rsplit(".", 1)[-1]: entry for entry in default_registry().of_kind("policy") for p in entry.handles}
    match = difflib.get_close_matches(class_name, names, n=1, cutoff=0.4)
    return f" The nearest is {names[match[0]].name!r} for {match[0]}." if match else ""


def _expect(value: Any, kind: Callable[..., Kind], name: str) -> Kind:
    # Callable in the signature: the interfaces are abstract, which a type checker does not admit for type[...].
    expected = cast("type[Kind]", kind)
    if not isinstance(value, expected):
        raise WrapError(
            f"{name!r} was registered as a {expected.__name__} but is a {type(value).__name__}.",
            "This is a fault of the plugin that registered it.",
        )
    return value
