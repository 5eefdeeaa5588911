"""From the arguments of ``wrap``, a preset and the defaults, to the pairs and settings of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from sfkit.config import ComponentSpec, PairConfig, SpatialForcingConfig, one_or_several
from sfkit.errors import ConfigError, SfkitWarning, did_you_mean, log_warning, shown
from sfkit.factory.components import ComponentLike, build_adapter, map_components
from sfkit.policies.base import PolicyAdapter
from sfkit.presets import Preset
from sfkit.registry.component import Configurable
from sfkit.registry.registry import Kind, default_registry, split_name

_Given: TypeAlias = Mapping[str, Any]
_ONE_PAIR = ("teacher", "student_layer", "teacher_layer")
#: Fields of a configuration and of a pair that are components or hold some; the others are checked before any is built.
_COMPONENTS = ("adapter", "pairs", "objective", "projector", "transforms", "schedule", "teacher")
#: Stands for a pair where the settings beside it are checked.
_PAIR: Mapping[str, object] = {"student_layer": 0, "teacher": "", "teacher_layer": 1}
_FORMS = (
    "Give (student_layer, teacher, teacher_layer, weight), or a mapping with those keys and, if wanted, future, "
    "objective, projector and transforms; teacher_layer and weight may be left out."
)


def read_pairs(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs of either form of :meth:`sfkit.SpatialForcing.wrap`, with every field of a pair; None: the default.

    Args:
        given: ``teacher``, ``student_layer``, ``teacher_layer`` and ``pairs``.

    Raises:
        ConfigError: Neither or both forms, no pair, or one that cannot be read.
    """
    single = {name: given.get(name) for name in _ONE_PAIR}
    pairs: object = given.get("pairs")
    if pairs is None:
        if single["teacher"] is None:
            raise ConfigError("No teacher.", 'Give one, for instance teacher="geometry", or pairs=[...].')
        pairs = [single]
    elif any(value is not None for value in single.values()):
        raise ConfigError("pairs=[...] names teachers and layers itself.", "Give either pairs or teacher.")
    if not isinstance(pairs, (list, tuple)) or not pairs:
        what = "empty" if isinstance(pairs, (list, tuple)) else f"{shown(pairs)}, not a list"
        raise ConfigError(f"pairs is {what}.", "List at least one (student_layer, teacher, teacher_layer, weight).")
    return [_read_pair(pair) for pair in pairs]


def _read_pair(given: object) -> dict[str, Any]:
    fields = PairConfig.model_fields
    pair = dict(given) if isinstance(given, (PairConfig, Mapping)) else {}
    if isinstance(given, (tuple, list)) and 2 <= len(given) <= 4:
        pair = dict(zip(("student_layer", "teacher", "teacher_layer", "weight"), given, strict=False))
    unknown = [shown(key) for key in pair if key not in fields]
    if unknown or not {"student_layer", "teacher"} <= pair.keys():
        hints = "".join(did_you_mean(key.strip("'"), fields) for key in unknown)
        raise ConfigError(f"Cannot read a pair from {shown(given)}.{hints}", _FORMS)
    chosen = {name: value for name, value in pair.items() if value is not None}
    settings = {name: value for name, value in chosen.items() if name not in _COMPONENTS}
    if isinstance(pair["student_layer"], int):  # the policy says which there are
        settings.pop("student_layer", None)
    checked = PairConfig.parse("a pair", {**_PAIR, **settings})
    chosen |= {name: getattr(checked, name) for name in settings}
    return {**{name: fields[name].get_default() for name in fields}, **dict.fromkeys(_ONE_PAIR), **chosen}


def find_preset(value: str | Preset | None) -> Preset | None:
    """A preset by its name.

    Raises:
        UnknownNameError: Nothing of that name is installed.
    """
    if value is None or isinstance(value, Preset):
        return value
    found: Preset = default_registry().get("preset", value).load()
    return found


def adapter_for(policy: nn.Module, value: ComponentLike | PolicyAdapter | None, preset: Preset | None) -> PolicyAdapter:
    """The policy's adapter, with those of the preset's options that the user did not set.

    Raises:
        AdapterError: No adapter handles the policy.
        ConfigError: It does not know one of the preset's options.
    """
    adapter = build_adapter(policy, value)
    if preset is None:
        return adapter
    options = preset.arguments_for(adapter.num_layers).get("adapter", {})
    given = adapter.options.model_dump(include=adapter.options.model_fields_set)
    missing = {key: item for key, item in options.items() if key not in given}
    _say_what_is_overridden(preset, "policy", adapter.name, {**missing, **given}, options)
    if not missing:
        return adapter
    listed = ", ".join(f"{key}={item}" for key, item in missing.items())
    wants = f"preset {preset.name!r} wants the adapter option {listed}"
    if isinstance(value, PolicyAdapter):
        if any(getattr(value.options, key, None) != item for key, item in missing.items()):
            message = f"sfkit: {wants}, and you gave an adapter without it; your adapter was kept."
            warnings.warn(message, SfkitWarning, stacklevel=3)
        return adapter
    if missing.keys() - type(adapter.options).model_fields:
        raise ConfigError(
            f"The {wants}, which adapter {adapter.name!r} does not have.",
            "Give the preset's other arguments yourself (`sfkit presets` shows them), or an adapter instance.",
        )
    own = ComponentSpec.of(adapter.name if value is None else value)
    return build_adapter(policy, (own.name, {**own.options, **missing}))


def with_defaults(preset: Preset | None, adapter: PolicyAdapter, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given arguments; for those that are None, the preset's; for the rest, the defaults of the configuration.

    Args:
        preset: The preset, if any.
        adapter: Of the policy.
        given: Arguments of ``wrap``.

    Raises:
        ConfigError: The preset does not fit this policy, or an argument does not fit the preset.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    if preset is not None:
        chosen = _merge(preset, adapter, chosen)
    fields = SpatialForcingConfig.model_fields.items()
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    settings = {name: chosen[name] for name in defaults if name in chosen and name not in _COMPONENTS}
    checked = SpatialForcingConfig.parse("SpatialForcing", {"adapter": "", "pairs": [_PAIR], **settings})
    chosen |= {name: getattr(checked, name) for name in settings}
    return {name: chosen.get(name, defaults.get(name)) for name in [*given, *chosen]}


def _merge(preset: Preset, adapter: PolicyAdapter, given: dict[str, Any]) -> dict[str, Any]:
    recipe = {key: value for key, value in preset.arguments_for(adapter.num_layers).items() if key != "adapter"}
    asked, given = given, _with_options_of(preset, recipe, given)
    if "pairs" in given:
        return {**{key: value for key, value in recipe.items() if key not in _ONE_PAIR}, **given}
    has = f"{type(adapter.policy).__name__} has {adapter.num_layers}"
    if preset.by_blocks and adapter.num_layers not in preset.by_blocks:
        sizes = " or ".join(map(str, preset.by_blocks))
        raise ConfigError(
            f"Preset {preset.name!r} was published for policies of {sizes} blocks; {has}.",
            "Give pairs=[...] beside it; everything else is taken from the preset.",
        )
    if "teacher" not in given and "teacher" not in recipe:
        raise ConfigError(f"Preset {preset.name!r} names no teacher.", preset.teacher_hint)
    teachers = [_read("teacher", each["teacher"])[0] for each in (given, recipe) if "teacher" in each]
    if len({*teachers}) > 1:
        recipe.pop("teacher_layer", None)
        _warn_of_scale(preset, teachers, asked, {**recipe, **given})
    merged = {**recipe, **given}
    several = "pairs" in recipe
    if several:
        for name in filter(given.__contains__, _ONE_PAIR[1:]):
            raise ConfigError(f"Preset {preset.name!r} has pairs, so {name} says nothing.", "Give pairs=[...].")
        teacher = merged.pop("teacher")
        merged["pairs"] = [{**pair, "teacher": teacher} for pair in recipe["pairs"]]
    layers = [pair["student_layer"] for pair in merged.get("pairs", (merged,)) if "student_layer" in pair]
    deep = [layer for layer in layers if isinstance(layer, int) and layer > adapter.num_layers]
    if deep and "student_layer" not in given:
        raise ConfigError(
            f"Preset {preset.name!r} aligns layer {deep[0]}; {has}.",
            f"Give {'pairs=[...]' if several else 'student_layer=...'} beside it.",
        )
    return merged


def _with_options_of(preset: Preset, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, where a component that the preset has too keeps the preset's options but for those that are given."""
    theirs: dict[tuple[Kind, str], list[dict[str, Any]]] = {}

    def note(kind: Kind, value: object) -> None:
        name, options = _read(kind, value)
        theirs.setdefault((kind, name), []).append(options)

    def keep(kind: Kind, value: object) -> object:
        name, own = _read(kind, value)
        # Of two with one name, as two transforms, it is not known which is meant.
        options = found[0] if len(found := theirs.get((kind, name), [])) == 1 else {}
        _say_what_is_overridden(preset, kind, name, own, options)
        return value if isinstance(value, Configurable) else ComponentSpec(name=name, options={**options, **own})

    map_components({**recipe, "pairs": None}, note)
    pairs = {"pairs": [_read_pair(pair) for pair in given["pairs"]]} if "pairs" in given else {}
    return map_components({**given, **pairs}, keep)


def _read(kind: Kind, value: object) -> tuple[str, dict[str, Any]]:
    """Name and options of a component. A teacher's argument belongs to its name; another's is one of the options."""
    if isinstance(value, Configurable):
        return value.name, value.options.model_dump()
    spec = ComponentSpec.of(value)
    base, argument = split_name(spec.name)
    entry = next((entry for entry in default_registry().of_kind(kind) if entry.name == base), None)
    if entry is None or not entry.argument:
        return spec.name, dict(spec.options)
    options = entry.options_of(spec.name, spec.options) if argument else dict(spec.options)
    if kind == "teacher" and entry.argument in options:
        return f"{base}:{options.pop(entry.argument)}", options
    return base, options


def _say_what_is_overridden(preset: Preset, kind: Kind, name: str, own: _Given, theirs: _Given) -> None:
    lost = [f"{key}={item} (yours: {own[key]})" for key, item in theirs.items() if str(own.get(key, item)) != str(item)]
    if lost:
        log_warning(f"your {kind} {name!r} overrides options of preset {preset.name!r}: {', '.join(lost)}")


def _warn_of_scale(preset: Preset, teachers: list[str], asked: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    said, stands = (
        [_read("transform", item)[1].get("scale") for item in one_or_several(arguments.get("transforms", ()))]
        for arguments in (asked, merged)
    )
    if "absolute" in stands and not any(said) and teachers[0] not in preset.same_scale:
        message = (
            f"sfkit: the position code of preset {preset.name!r} has the size that suits {teachers[1]!r}; "
            f"beside {teachers[0]!r} it may be all of the target, or none. Give transforms=[...] with "
            '("position-code", {"ratio": 0.1, "scale": "relative"}), or none.'
        )
        warnings.warn(message, SfkitWarning, stacklevel=5)
