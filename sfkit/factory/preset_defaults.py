"""From a preset, what the user gave beside it, and the defaults, to the arguments of a plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from sfkit.config import ComponentSpec, SpatialForcingConfig
from sfkit.errors import ConfigError, SfkitWarning
from sfkit.factory.components import ComponentLike, build_adapter
from sfkit.policies.base import PolicyAdapter
from sfkit.presets import Preset
from sfkit.registry.registry import default_registry
from sfkit.teachers.base import Teacher

_DEFAULTS = ("objective", "projector", "transforms", "schedule", "weight", "shared_projector", "pair_reduction")


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
    wanted = {} if preset is None else preset.arguments_for(adapter.num_layers).get("adapter", {})
    missing = {key: wish for key, wish in wanted.items() if key not in adapter.options.model_fields_set}
    if not missing or preset is None:
        return adapter
    listed = ", ".join(f"{key}={wish}" for key, wish in missing.items())
    if isinstance(value, PolicyAdapter):
        if any(getattr(value.options, key, None) != wish for key, wish in missing.items()):
            warnings.warn(
                f"sfkit: preset {preset.name!r} wants the adapter option {listed}, and you gave an adapter without it; "
                "your adapter was kept.",
                SfkitWarning,
                stacklevel=3,
            )
        return adapter
    if any(key not in type(adapter.options).model_fields for key in missing):
        raise ConfigError(
            f"Preset {preset.name!r} wants the adapter option {listed}, which adapter {adapter.name!r} does not have.",
            "Give the preset's other arguments yourself (`sfkit presets` shows them), or an adapter instance.",
        )
    own = ComponentSpec(name=adapter.name) if value is None else ComponentSpec.of(value)
    return build_adapter(policy, (own.name, {**own.options, **missing}))


def fill_in(preset: Preset | None, adapter: PolicyAdapter, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave; for what is left None, what the preset says; for the rest, the defaults.

    Args:
        preset: The preset, if any.
        adapter: Of the policy.
        given: Arguments of ``wrap``.

    Raises:
        ConfigError: The preset does not fit this policy, or what was given does not fit the preset.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    if preset is not None:
        chosen = _merge(preset, adapter, chosen)
    for name in _DEFAULTS:
        if name not in chosen:
            chosen[name] = SpatialForcingConfig.model_fields[name].get_default(call_default_factory=True)
    return {**dict.fromkeys(given), **chosen}


def _merge(preset: Preset, adapter: PolicyAdapter, given: dict[str, Any]) -> dict[str, Any]:
    recipe = {key: value for key, value in preset.arguments_for(adapter.num_layers).items() if key != "adapter"}
    if "pairs" in given:
        for name in ("teacher", "student_layer", "teacher_layer"):
            recipe.pop(name, None)
        return {**recipe, **given}
    if preset.by_blocks and adapter.num_layers not in preset.by_blocks:
        sizes = " or ".join(str(blocks) for blocks in preset.by_blocks)
        raise ConfigError(
            f"Preset {preset.name!r} was published for policies of {sizes} blocks; {_policy(adapter)}.",
            "Give pairs=[...] beside it; everything else is taken from the preset.",
        )
    if "teacher" not in given and "teacher" not in recipe:
        raise ConfigError(f"Preset {preset.name!r} names no teacher.", preset.teacher_hint)
    if "teacher" in given and "teacher" in recipe and _name(given["teacher"]) != _name(recipe["teacher"]):
        recipe.pop("teacher_layer", None)
        _warn_of_scale(preset, recipe, given)
    merged = {**recipe, **given}
    if "pairs" in recipe:
        for name in ("student_layer", "teacher_layer"):
            if name in given:
                raise ConfigError(f"Preset {preset.name!r} has pairs, so {name} says nothing.", "Give pairs=[...].")
        teacher = merged.pop("teacher")
        merged["pairs"] = [{**pair, "teacher": teacher} for pair in recipe["pairs"]]
    layers = [pair["student_layer"] for pair in merged.get("pairs", ())] or [merged.get("student_layer")]
    deep = [layer for layer in layers if isinstance(layer, int) and layer > adapter.num_layers]
    if deep and "student_layer" not in given:
        raise ConfigError(
            f"Preset {preset.name!r} aligns layer {deep[0]}; {_policy(adapter)}.",
            "Give student_layer=... beside it." if "pairs" not in recipe else "Give pairs=[...] beside it.",
        )
    return merged


def _policy(adapter: PolicyAdapter) -> str:
    return f"{type(adapter.policy).__name__} has {adapter.num_layers}"


def _name(teacher: Any) -> str:
    return teacher.name if isinstance(teacher, Teacher) else ComponentSpec.of(teacher).name


def _warn_of_scale(preset: Preset, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if "transforms" in given or _name(given["teacher"]) in preset.same_scale:
        return
    absolute = [ComponentSpec.of(item).options.get("scale") == "absolute" for item in recipe.get("transforms", ())]
    if any(absolute):
        warnings.warn(
            f"sfkit: the position code of preset {preset.name!r} has the size that suits {_name(recipe['teacher'])!r}; "
            f"beside {_name(given['teacher'])!r} it may be all of the target, or none. Give transforms=[...] with "
            '("position-code", {"ratio": 0.1, "scale": "relative"}), or none.',
            SfkitWarning,
            stacklevel=5,
        )
