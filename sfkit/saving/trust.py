"""What a file says is checked before anything is built from it; see :mod:`sfkit.registry.component` for the marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from sfkit.config import ComponentSpec, Options, SpatialForcingConfig
from sfkit.errors import ConfigError, PluginError, TrustError, did_you_mean, log_warning, shown
from sfkit.factory.components import map_components
from sfkit.registry.component import SetBy, is_changeable, set_by
from sfkit.registry.registry import Entry, Kind, default_registry, split_name
from sfkit.utils.places import digest_in, digest_of, is_local, scrubbed, without_places

#: Options by the name of a component.
Given: TypeAlias = Mapping[str, Mapping[str, object]]
Arguments: TypeAlias = Mapping[str, Any]

#: What a run shares with the one that it resumes. The other fields say how it is computed, measured and logged.
_LASTING = ("adapter", "shared_projector", "pair_reduction", "weight", "schedule")
_OF_PAIRS = ("objective", "projector", "transforms")
_WHY = {
    SetBy.CALL: "may permit code: its plugin does not say that a file may set it",
    SetBy.LOCAL_FILE: "names a file or a repository",
}


@dataclass(frozen=True)
class Origin:
    """The file from which arguments of ``wrap`` were read.

    Attributes:
        file: Its name in errors.
        local: Whether the caller named a file on this machine, and not a repository of the Hub.
        ask: From a component's name and options to what the caller has to write.
        versions: Of the distributions that it was written with, where it says so.
    """

    file: str
    local: bool
    ask: Callable[[str, Mapping[str, object]], str]
    versions: Mapping[str, object] = MappingProxyType({})


def admit(arguments: Arguments, origin: Origin | None, given: Given) -> dict[str, Any]:
    """Check arguments of ``wrap`` that were read from a file: nothing in them may be the caller's alone to decide.

    Args:
        arguments: Components by name or with options; pairs as :class:`~sfkit.config.PairConfig` or mappings.
        origin: Where they were read; None where the caller gave them, so that nothing needs a check.
        given: By the name of a component as the file has it: options that the caller gives. They replace the file's.

    Returns:
        The arguments, with the caller's options.

    Raises:
        TrustError: The file sets what the caller must give; the error prints what to write.
        ConfigError: ``given`` names no component of the file, or an option is not valid.
    """
    if not isinstance(given, Mapping) or not all(isinstance(options, Mapping) for options in given.values()):
        raise ConfigError(f"options is {shown(given)}.", 'Give them by component: {"mlp": {"hidden": 256}}.')
    names, logged = names_in(arguments), list[str]()
    for name in given:
        if name not in names:
            where = f"in {origin.file}" if origin else "here"
            raise ConfigError(
                f"Options are given for {name!r}, and nothing {where} has that name.{did_you_mean(name, names)}",
                f"Names: {', '.join(map(repr, names)) or 'none'}.",
            )

    def admit_one(kind: Kind, value: object) -> ComponentSpec:
        spec = ComponentSpec.of(value)
        own = given.get(spec.name, {})
        entry = default_registry().get(kind, spec.name)
        saved = entry.options_of(spec.name, spec.options)
        if origin is not None:
            logged.extend(_check(origin, entry, spec.name, saved, own))
        elif not own:
            return spec
        return ComponentSpec(name=entry.name, options={**saved, **own})

    admitted = map_components(arguments, admit_one)
    for line in logged:
        log_warning(line)
    return admitted


def names_in(arguments: Arguments) -> list[str]:
    """The names of all components in arguments of ``wrap``."""
    names: list[str] = []

    def note(kind: Kind, value: object) -> object:
        names.append(ComponentSpec.of(value).name)
        return value

    map_components(arguments, note)
    return names


def _check(
    origin: Origin, entry: Entry, name: str, saved: Mapping[str, object], own: Mapping[str, object]
) -> list[str]:
    """Check the options of one component; returns what is logged.

    Args:
        origin: Where they were read.
        entry: The component.
        name: Its name in the file.
        saved: The file's options.
        own: The caller's options, which replace them.

    Raises:
        TrustError: The caller must give one of the file's options, or gives another file than the one that was saved.
        ConfigError: The installed component does not take an option or value of the file.
    """
    # A digest has no path: options of this kind must come from the caller before the others can be parsed.
    what = f"{entry.kind} {name!r}"
    lost = {key: "/path/to/it" for key, value in saved.items() if key not in own and digest_in(value)}
    if lost:
        raise _refusal(origin, what, name, lost, [f"{key} lay on the machine that saved it" for key in lost])
    for key, value in own.items():
        if expected := digest_in(saved.get(key)):
            _verify_digest(f"Option {key} of {what}", value, expected, origin)
    try:
        options = _settings(_options_class(entry).parse(name, {**saved, **own}))
    except ConfigError as error:
        if (then := origin.versions.get(entry.distribution)) is None:
            raise
        wrote = f"{entry.distribution} {then!r}, where {entry.version!r} is installed"
        raise ConfigError(f"{origin.file} was written with {wrote}. {error.message}", error.remedy) from error
    # Who permits code says whose code it is.
    permits_code = any(key in own and by is SetBy.CALL for key, by, _ in options)
    most = SetBy.LOCAL_FILE if origin.local and not permits_code else SetBy.ANY_FILE
    read = [(key, by, saved.get(key, value)) for key, by, value in options if key not in own and by > SetBy.ANY_FILE]
    refused = {key: value for key, by, value in read if by > most}
    if refused:
        raise _refusal(origin, what, name, refused, [f"{key} {_WHY[by]}" for key, by, _ in read if by > most])
    return [f"{origin.file} names {key}={value!r} of {what}" for key, _, value in read]


def _refusal(origin: Origin, what: str, name: str, options: Mapping[str, object], reasons: Sequence[str]) -> TrustError:
    settings = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return TrustError(
        f"{origin.file} asks for {what} with {settings}, which is for you to give, not for a file "
        f"({'; '.join(reasons)}).",
        f"If you trust it, {origin.ask(name, options)}.",
    )


def _verify_digest(what: str, given: object, expected: str, origin: Origin) -> None:
    if expected == "unknown" or not isinstance(given, str) or not is_local(given, bare=True):
        log_warning(f"{what}, {given!r}, could not be compared with what {origin.file} was trained with")
    elif (found := digest_of(given)) != expected:
        raise TrustError(
            f"{what} is not what {origin.file} was trained with: {given} has the digest {found}, expected {expected}.",
            "Give the same file or folder; or give pairs=[...] yourself, if another one is meant.",
        )


def _settings(options: BaseModel) -> list[tuple[str, SetBy, object]]:
    """Name, who may set it, and value of each option that is not at its default."""
    found: list[tuple[str, SetBy, object]] = []
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if field.is_required() or value != field.get_default(call_default_factory=True):
            found.append((name, _set_by(field, value), value))
    return [*found, *((name, SetBy.CALL, value) for name, value in (options.model_extra or {}).items())]


def _set_by(field: FieldInfo, value: object) -> SetBy:
    """Who may set a field to a value. A field without a mark that holds components is as free as they are."""
    inner = [_set_by_model(model) for model in _models_in(value)]
    marked = set_by(field)
    return max(inner) if inner and marked is SetBy.CALL else max([marked, *inner])


def _set_by_model(model: BaseModel) -> SetBy:
    if not isinstance(model, ComponentSpec):
        return max((by for _, by, _ in _settings(model)), default=SetBy.ANY_FILE)
    # Only its owner knows its kind: it must be free in each kind that has the name.
    base, _ = split_name(model.name)
    entries = [entry for entry in default_registry().entries if entry.name == base and entry.target is not None]
    found = [SetBy.ANY_FILE if entries else SetBy.CALL]
    for entry in entries:
        try:
            options = _options_class(entry).parse(model.name, entry.options_of(model.name, model.options))
        except ConfigError:
            continue  # it is not of this kind
        found += [by for _, by, _ in _settings(options)]
    return max(found)


def _models_in(value: object) -> list[BaseModel]:
    """The models in nested lists and mappings."""
    if isinstance(value, BaseModel):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list, set, frozenset)):
        return [model for item in value for model in _models_in(item)]
    return []


def _options_class(entry: Entry) -> type[Options]:
    found = getattr(entry.load(), "Options", None)
    return found if isinstance(found, type) and issubclass(found, Options) else Options


@dataclass(frozen=True)
class Published:
    """A configuration as it may be published, without a path of this machine.

    Attributes:
        config: With a digest in the place of each local file or folder.
        replaced: The text that replaces each path.
    """

    config: SpatialForcingConfig
    replaced: Mapping[str, str]

    @classmethod
    def of(cls, config: SpatialForcingConfig) -> Published:
        """Replace the paths of a configuration; reads the files, once."""
        replaced: dict[str, str] = {}
        values = map_components(dict(config), lambda kind, spec: _published(kind, ComponentSpec.of(spec), replaced))
        # Copies, not validated: pairs that differ in a path alone may now be the same.
        pairs = zip(config.pairs, values["pairs"], strict=True)
        values["pairs"] = tuple(pair.model_copy(update=changed) for pair, changed in pairs)
        return cls(config.model_copy(update=values), replaced)

    def text(self, text: str) -> str:
        """A text about the run, with the same replacements."""
        return scrubbed(text, self.replaced)


def public_text(kind: Kind, spec: ComponentSpec, text: str) -> str:
    """A text about a component, with a digest in the place of a path of this machine."""
    replaced: dict[str, str] = {}
    _published(kind, spec, replaced)
    return scrubbed(text, replaced)


def _published(kind: Kind, spec: ComponentSpec, replaced: dict[str, str]) -> ComponentSpec:
    name, options = spec.name, dict(spec.options)
    fields: Mapping[str, FieldInfo] = {}
    try:
        entry = default_registry().get(kind, name)
        fields = _options_class(entry).model_fields
        base, argument = split_name(name)
        if argument is not None and is_local(argument):
            options.pop(entry.argument, None)
            without_places(argument, replaced)
            name = f"{base}:sha256:{digest_of(argument) or 'unknown'}"
    except (ConfigError, PluginError):
        pass  # an instance that is not registered: nothing is known of its options
    for key, value in options.items():
        if key not in fields or set_by(fields[key]) is not SetBy.ANY_FILE:
            options[key] = without_places(value, replaced)
    return ComponentSpec(name=name, options=options)


def lasting(config: SpatialForcingConfig, given: Given) -> Any:
    """What a resumed run shares with the saved one, as JSON: without options that are ``Changeable``, or how it is run.

    Args:
        config: Of either.
        given: The caller's options, by the name of a component in ``config``. They replace what a file may not set.
    """
    found = map_components(dict(config), lambda kind, spec: _comparable(kind, ComponentSpec.of(spec), given))
    # A pair by itself: it does not matter whether the whole run, or the pair alone, was given an objective.
    pairs = [{**pair, **{name: found[name] for name in _OF_PAIRS if pair[name] is None}} for pair in found["pairs"]]
    return to_jsonable_python({"pairs": pairs, **{name: found[name] for name in _LASTING}})


def _comparable(kind: Kind, spec: ComponentSpec, given: Given) -> ComponentSpec:
    """A component with its argument among its options, and without what a resumed run may change."""
    try:
        entry = default_registry().get(kind, spec.name)
        fields, options = _options_class(entry).model_fields, entry.options_of(spec.name, spec.options)
    except (ConfigError, PluginError):  # an instance that is not registered
        return _published(kind, spec, {})
    own = given.get(spec.name, {}).items()
    options.update({key: item for key, item in own if key in fields and set_by(fields[key]) > SetBy.ANY_FILE})
    kept = {key: item for key, item in options.items() if not (key in fields and is_changeable(fields[key]))}
    return _published(kind, ComponentSpec(name=entry.name, options=kept), {})
