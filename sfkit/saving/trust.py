"""What was read from a file is checked before anything is built from it; see :mod:`sfkit.registry.component`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel

from sfkit.config import ComponentSpec, Options, PairConfig, SpatialForcingConfig, one_or_several
from sfkit.errors import ConfigError, PluginError, TrustError, did_you_mean
from sfkit.registry.component import SetBy, parts_of, set_by, settings_of
from sfkit.registry.registry import Kind, default_registry, split_name
from sfkit.utils.places import (
    digest_in,
    digest_of,
    digest_of_text,
    digest_text,
    is_digest,
    is_local,
    scrubbed,
    without_places,
)

logger = logging.getLogger("sfkit")

#: Options by the name of a component.
Given: TypeAlias = Mapping[str, Mapping[str, Any]]

_KINDS: Mapping[str, Kind] = {
    "teacher": "teacher",
    "objective": "objective",
    "projector": "projector",
    "transforms": "transform",
    "schedule": "schedule",
    "adapter": "policy",
}
_SEVERAL = ("transforms", "schedule")
_WHY = {
    SetBy.CALL: "may permit code: its plugin does not say that a file may set it",
    SetBy.LOCAL_FILE: "names a file or a repository",
}


@dataclass(frozen=True)
class Origin:
    """Where arguments of ``wrap`` were read.

    Attributes:
        file: What errors call it.
        local: Whether the caller named a file on this machine, and not a repository of the Hub.
        ask: From a component's name and options to what the caller has to write.
    """

    file: str
    local: bool
    ask: Callable[[str, Mapping[str, Any]], str]


def admit(arguments: Mapping[str, Any], origin: Origin | None, given: Given) -> dict[str, Any]:
    """Arguments of ``wrap`` that were read from a file, once nothing in them is for the caller alone to decide.

    Args:
        arguments: Components by name or with options; pairs as :class:`~sfkit.config.PairConfig` or mappings.
        origin: Where they were read; None where the caller gave them, so that nothing is to be checked.
        given: By the name of a component as the file has it: options that the caller gives. They replace the file's.

    Raises:
        TrustError: The file sets what the caller must give; the error prints what to write.
        ConfigError: ``given`` names no component of the file, or an option is not valid.
    """
    desk = _Desk(origin, given)
    admitted = desk.arguments(arguments)
    if "pairs" in admitted and admitted["pairs"] is not None:
        admitted["pairs"] = [desk.arguments(_as_mapping(pair)) for pair in admitted["pairs"]]
    unknown = [name for name in given if name not in desk.seen]
    if unknown:
        where = "nothing here" if origin is None else f"nothing in {origin.file}"
        raise ConfigError(
            f"Options are given for {unknown[0]!r}, and {where} has that name.{did_you_mean(unknown[0], desk.seen)}",
            f"Names: {', '.join(map(repr, desk.seen)) or 'none'}.",
        )
    for line in desk.shown:
        logger.warning("sfkit: %s", line)
    return admitted


@dataclass(frozen=True)
class Published:
    """A configuration as it may be published, without a path of this machine.

    Attributes:
        config: With a digest in the place of each local file or folder.
        replaced: What each path became.
    """

    config: SpatialForcingConfig
    replaced: Mapping[str, str]

    @classmethod
    def of(cls, config: SpatialForcingConfig) -> Published:
        """Replace the paths of a configuration; reads what they name, once."""
        replaced: dict[str, str] = {}
        values = _published_fields(config, replaced)
        values["pairs"] = tuple(pair.model_copy(update=_published_fields(pair, replaced)) for pair in config.pairs)
        return cls(config.model_copy(update=values), replaced)

    def text(self, text: str) -> str:
        """A text about the run, with the same replacements."""
        return scrubbed(text, self.replaced)


def public_text(kind: Kind, spec: ComponentSpec, text: str) -> str:
    """A text about a component, with a digest in the place of a path of this machine."""
    replaced: dict[str, str] = {}
    _published(kind, spec, replaced)
    return scrubbed(text, replaced)


def _published_fields(holder: BaseModel, replaced: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = getattr(holder, name, None)
        if isinstance(value, ComponentSpec):
            found[name] = _published(kind, value, replaced)
        elif value is not None:
            found[name] = tuple(_published(kind, item, replaced) for item in value)
    return found


def _published(kind: Kind, spec: ComponentSpec, replaced: dict[str, str]) -> ComponentSpec:
    name, options = spec.name, dict(spec.options)
    fields: Mapping[str, Any] = {}
    try:
        entry = default_registry().get(kind, name)
        fields = _options_class(entry.load()).model_fields
        base, argument = split_name(name)
        if argument is not None and is_local(argument):
            name = f"{base}:{digest_text(without_places(argument, replaced))}"
            options.pop(entry.argument, None)
    except (ConfigError, PluginError):
        pass  # an instance that is not registered: nothing is known of its options
    for key, value in options.items():
        if key not in fields or set_by(fields[key]) is not SetBy.ANY_FILE:
            options[key] = without_places(value, replaced)
    return ComponentSpec(name=name, options=options)


def names_in(arguments: Mapping[str, Any]) -> list[str]:
    """The names of all components in arguments of ``wrap``."""
    desk = _Desk(None, {})
    for each in (arguments, *map(_as_mapping, arguments.get("pairs") or ())):
        desk.arguments(each)
    return desk.seen


class _Desk:
    """The check of one file."""

    def __init__(self, origin: Origin | None, given: Given) -> None:
        self.origin, self.given = origin, given
        self.seen: list[str] = []
        self.shown: list[str] = []

    def arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        admitted = dict(arguments)
        for name, kind in _KINDS.items():
            value = admitted.get(name)
            if value is None:
                continue
            if name in _SEVERAL:
                admitted[name] = [self.component(kind, item) for item in one_or_several(value)]
            else:
                admitted[name] = self.component(kind, value)
        return admitted

    def component(self, kind: Kind, value: Any) -> ComponentSpec:
        """One component, with the caller's options in the place of the file's."""
        spec = ComponentSpec.of(value)
        self.seen.append(spec.name)
        entry = default_registry().get(kind, spec.name)
        saved, own = entry.options_of(spec.name, spec.options), dict(self.given.get(spec.name, {}))
        if entry.argument:  # of a local file or folder the name holds the digest
            saved[entry.argument] = digest_of_text(saved[entry.argument])
        if self.origin is None:
            return ComponentSpec(name=entry.name, options={**saved, **own}) if own else spec
        asked = {key: "/path/to/it" for key, item in saved.items() if key not in own and digest_in(item) is not None}
        if asked:
            self._ask(self.origin, kind, spec.name, asked, [f"{key} lay on the machine that saved it" for key in asked])
        for key, item in saved.items():
            if key in own and is_digest(item):
                _verify(f"Option {key} of {kind} {spec.name!r}", own[key], item["sha256"], self.origin)
        options = {**saved, **own}
        parsed = _options_class(entry.load()).parse(spec.name, options)
        self._check(self.origin, kind, ComponentSpec(name=spec.name, options=saved), parsed, own)
        return ComponentSpec(name=entry.name, options=options)

    def _check(self, origin: Origin, kind: str, saved: ComponentSpec, options: Options, own: Mapping[str, Any]) -> None:
        # Who permits code says whose code it is.
        permits = any(key in own and set_by(field) is SetBy.CALL for key, field, _ in settings_of(options))
        most = SetBy.LOCAL_FILE if origin.local and not permits else SetBy.ANY_FILE
        asked, reasons = {}, []
        for key, by, value in _wanted(options):
            if key in own or by is SetBy.ANY_FILE:
                continue
            found = saved.options.get(key, value)
            if by > most:
                asked[key] = found
                reasons.append(f"{key} {_WHY[by]}")
            else:
                self.shown.append(f"{origin.file} names {key}={found!r} of {kind} {saved.name!r}")
        if asked:
            self._ask(origin, kind, saved.name, asked, reasons)

    def _ask(self, origin: Origin, kind: str, name: str, asked: Mapping[str, Any], reasons: Sequence[str]) -> None:
        sets = ", ".join(f"{key}={value!r}" for key, value in asked.items())
        raise TrustError(
            f"{origin.file} asks for {kind} {name!r} with {sets}, which is for you to give, not for a file "
            f"({'; '.join(reasons)}).",
            f"If you trust it, {origin.ask(name, asked)}.",
        )


def _wanted(options: BaseModel) -> list[tuple[str, SetBy, Any]]:
    """Each option that is not left at its default, and who may set it to what it is."""
    found = [(name, _by(field, value), value) for name, field, value in settings_of(options)]
    return [*found, *((name, SetBy.CALL, value) for name, value in (options.model_extra or {}).items())]


def _by(field: Any, value: Any) -> SetBy:
    inner = [_by_model(part) for part in parts_of(value)]
    marked = set_by(field)
    # A field that holds components and has no mark is as free as they are.
    return max([*inner, marked]) if not inner or marked is not SetBy.CALL else max(inner)


def _by_model(model: BaseModel) -> SetBy:
    if not isinstance(model, ComponentSpec):
        return max((by for _, by, _ in _wanted(model)), default=SetBy.ANY_FILE)
    # Of which kind it is, its owner knows alone: it must be free in each kind that has the name.
    base = model.name.partition(":")[0]
    entries = [entry for entry in default_registry().entries if entry.name == base and entry.target is not None]
    found = [SetBy.ANY_FILE if entries else SetBy.CALL]
    for entry in entries:
        try:
            options = _options_class(entry.load()).parse(model.name, entry.options_of(model.name, model.options))
        except ConfigError:
            continue  # it is not of this kind
        found += [by for _, by, _ in _wanted(options)]
    return max(found)


def _options_class(component: Any) -> type[Options]:
    found = getattr(component, "Options", None)
    return found if isinstance(found, type) and issubclass(found, Options) else Options


def _as_mapping(pair: Any) -> Mapping[str, Any]:
    return {name: getattr(pair, name) for name in PairConfig.model_fields} if isinstance(pair, PairConfig) else pair


def _verify(what: str, given: Any, digest: str | None, origin: Origin) -> None:
    """Compare what the caller named with what the saved run had.

    Raises:
        TrustError: It is another file or folder.
    """
    if digest is None or not isinstance(given, str) or not is_local(given, bare=True):
        logger.warning("sfkit: %s, %r, could not be compared with what %s was trained with", what, given, origin.file)
        return
    found = digest_of(given)
    if found != digest:
        raise TrustError(
            f"{what} is not what {origin.file} was trained with: {given} has the digest {found}, expected {digest}.",
            "Give the same file or folder; or give pairs=[...] yourself, if another one is meant.",
        )
