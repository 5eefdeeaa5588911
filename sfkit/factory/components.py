"""From names, names with options, or instances to components."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from torch import nn

from sfkit.config import ComponentSpec, one_or_several
from sfkit.errors import AdapterError, ConfigError, WrapError, shown
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.projectors.base import Projector
from sfkit.registry.hookspecs import EXTRAS
from sfkit.registry.registry import Kind, default_registry, pip_install
from sfkit.schedules.base import Product, Schedule
from sfkit.teachers.base import Teacher
from sfkit.transforms.base import Transform
from sfkit.utils.runtime import own_rng

Made = TypeVar("Made")

#: A component's name, a name with options, or (in signatures that say so) a ready instance.
ComponentLike: TypeAlias = "str | Mapping[str, object] | tuple[str, Mapping[str, object]] | ComponentSpec"

_KINDS: Mapping[str, Kind] = {
    "teacher": "teacher",
    "objective": "objective",
    "projector": "projector",
    "transforms": "transform",
    "schedule": "schedule",
    "adapter": "policy",
}


def map_components(arguments: Mapping[str, Any], change: Callable[[Kind, object], object]) -> dict[str, Any]:
    """Arguments of ``wrap`` with each of their components changed, those of pairs included (which are mappings)."""
    changed = dict(arguments)
    for name, kind in _KINDS.items():
        value = changed.get(name)
        if value is not None and name in ("transforms", "schedule"):
            changed[name] = tuple(change(kind, item) for item in one_or_several(value))
        elif value is not None:
            changed[name] = change(kind, value)
    if changed.get("pairs") is not None:
        changed["pairs"] = [map_components(dict(pair), change) for pair in changed["pairs"]]
    return changed


def _build(kind: Kind, base: Callable[..., Made], value: object, *arguments: object) -> Made:
    """Build what is registered under a component's name; ``base`` is the interface of its kind."""
    spec = ComponentSpec.of(value)
    entry = default_registry().get(kind, spec.name)
    return _expect(base, entry.load()(*arguments, entry.options_of(spec.name, spec.options)), spec.name)


def _expect(base: Callable[..., Made], made: object, name: str) -> Made:
    # Callable in the signature: the interfaces are abstract, which a type checker does not admit for type[...].
    expected = cast("type[Made]", base)
    if isinstance(made, expected):
        return made
    raise WrapError(
        f"{name!r} was registered as a {expected.__name__} but is a {type(made).__name__}.",
        "This is a fault of the plugin that registered it.",
    )


def build_teacher(value: ComponentLike | Teacher) -> Teacher:
    """A teacher from its name, name with options, or an instance."""
    return value if isinstance(value, Teacher) else _build("teacher", Teacher, value)


def build_objective(value: ComponentLike | Objective) -> Objective:
    """An objective from its name, name with options, or an instance."""
    objective = value if isinstance(value, Objective) else _build("objective", Objective, value)
    objective.build_terms(build_objective)
    return objective


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
    with own_rng(seed=seed):
        return _build("projector", Projector, value, student_dim, teacher_dim)


def build_transforms(values: Sequence[ComponentLike | Transform], teacher_dim: int) -> list[Transform]:
    """The transforms of one pair, for features of ``teacher_dim`` channels; empty if none are asked for.

    Resampling comes first if the sequence does not say where it belongs.

    Raises:
        ConfigError: One name or mapping instead of a sequence, or an instance for another width.
    """
    if not isinstance(values, (list, tuple)):
        raise ConfigError(
            f"transforms is {shown(values)}, not a list.", "Write transforms=[...], even for a single one."
        )
    built: list[Transform] = []
    for value in values:
        width = built[-1].out_dim if built else teacher_dim
        if isinstance(value, Transform) and value.dim != width:
            raise ConfigError(
                f"Transform {value.name!r} takes {value.dim} channels, there are {width} where it stands.",
                "Build it for that width, or give its name and let sfkit build it.",
            )
        built.append(value if isinstance(value, Transform) else _build("transform", Transform, value, width))
    if built and not any(transform.resamples for transform in built):
        built.insert(0, _build("transform", Transform, "resample", teacher_dim))
    return built


def build_schedule(value: ComponentLike | Schedule | Sequence[ComponentLike | Schedule]) -> Product:
    """The schedules that apply together, from one or several names, names with options, or instances.

    Raises:
        ConfigError: An unknown name or bad option, or they leave no step to align.
    """
    return Product(
        [item if isinstance(item, Schedule) else _build("schedule", Schedule, item) for item in one_or_several(value)]
    )


def build_adapter(policy: nn.Module, value: ComponentLike | PolicyAdapter | None) -> PolicyAdapter:
    """The adapter for a policy: the one given, or the one whose patterns match its class.

    Raises:
        AdapterError: None matches, or several do.
    """
    inner = inside_peft(policy)
    if isinstance(value, PolicyAdapter):
        return value.bind(inner)
    if value is not None:
        return _build("policy", PolicyAdapter, value, inner)
    registry, cls = default_registry(), type(inner)
    qualified = f"{cls.__module__}.{cls.__qualname__}"
    for entry in registry.adapters_for(cls):
        return _expect(PolicyAdapter, entry.load()(inner), entry.name)
    for refused in registry.unsupported_for(cls):
        raise AdapterError(
            f"{refused.name} ({qualified}) cannot be aligned: {refused.reason}.",
            "If that no longer holds, pass adapter=YourAdapter(policy). `sfkit policies` lists what can be aligned.",
        )
    installed = registry.of_kind("policy")
    listing = ", ".join(f"{entry.name} ({', '.join(entry.handles)})" for entry in installed) or "none"
    broken = "".join(f" Broken plugin: {plugin}." for plugin in registry.broken)
    classes = {path.rsplit(".", 1)[-1]: entry.name for entry in installed for path in entry.handles}
    nearest = "".join(
        f" The nearest is {classes[one]!r} for {one}."
        for one in difflib.get_close_matches(cls.__name__, classes, n=1, cutoff=0.4)
    )
    extra = "openvla" if "OpenVLA" in cls.__name__ else qualified.partition(".")[0]
    lacks = extra in EXTRAS["policy"].values() and all(extra not in entry.distribution for entry in installed)
    install = f"{pip_install(extra)}, or pass" if lacks else "Pass"
    raise AdapterError(
        f"No adapter handles {qualified}. Installed adapters: {listing}.{nearest}{broken}",
        f"{install} adapter=GenericAdapter(...): `sfkit inspect` finds its options.",
    )


def inside_peft(policy: nn.Module) -> nn.Module:
    """The base model inside a PeftModel, else the policy itself. Recognized by name: peft is not imported."""
    for cls in type(policy).__mro__:
        if cls.__module__.split(".")[0] == "peft" and cls.__name__ == "PeftModel":
            base: nn.Module = cast("Any", policy).get_base_model()
            return base
    return policy
