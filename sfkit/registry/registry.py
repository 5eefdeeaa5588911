"""The registry: which components are installed. Entry points are loaded one by one, components on first use."""

from __future__ import annotations

import functools
import importlib
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any, Literal, get_args

import pluggy

from sfkit import SFKIT_API
from sfkit.errors import ConfigError, PluginError, UnknownNameError, did_you_mean, shown
from sfkit.registry import hookspecs
from sfkit.registry.hookspecs import EXTRAS, REPOSITORIES

Kind = Literal["teacher", "policy", "objective", "projector", "transform", "schedule", "preset", "parity", "command"]

_PLURALS = {"policy": "policies", "parity": "parity"}
_HOOKS: Mapping[Kind, str] = {kind: f"register_{_PLURALS.get(kind, f'{kind}s')}" for kind in get_args(Kind)}
#: The distribution of the core, whose components are always there.
CORE = "spatial-forcing"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+ -]*[A-Za-z0-9])?")
#: A package, and a class with a letter of its own; anything between them.
_PATTERN = re.compile(r"[A-Za-z_]\w*\.(.*\.)?[^.]*\w[^.]*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Entry:
    """One registered component, with static metadata, so that a listing imports nothing heavy.

    Attributes:
        kind: What it is.
        name: What users write.
        target: ``"package.module:Class"``, or the class itself (for a preset the object); None for a policy that has no
            adapter.
        distribution: The installed distribution that registered it.
        summary: One line for listings.
        license: For teachers: the license of the weights.
        handles: For policies: patterns of qualified class names, such as ``"lerobot.*.PI0Policy"``.
        argument: For names that are used as ``name:argument``: the option that takes the text after the colon.
        placeholder: The argument's word in listings, such as ``"repo or folder"``.
        aligned: For policies: which tokens are aligned, in a few words.
        verified: For policies: on which models the adapter is tested.
        trains: For policies: what the framework trains by default, as far as alignment is concerned.
        reason: For policies without an adapter: why there is none. Such an entry is found by its class alone.
    """

    kind: Kind
    name: str
    target: object
    distribution: str
    summary: str = ""
    license: str = ""
    handles: tuple[str, ...] = ()
    argument: str = ""
    placeholder: str = ""
    aligned: str = ""
    verified: str = ""
    trains: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        # By hand: pydantic would take longer to import than all of `sfkit --help`.
        target: object = self.target
        handles: object = self.handles  # a plugin may give anything
        texts = {key: value for key, value in vars(self).items() if key not in ("kind", "target", "handles")}
        faults = {
            key: f"{value!r}, no text of one line"  # listings print and sort the texts
            for key, value in texts.items()
            if not (isinstance(value, str) and value.isprintable())
        }
        if not faults and not _NAME.fullmatch(self.name):
            faults["name"] = f"{self.name!r}, and not of letters, digits, and . _ - + or blanks between them"
        is_object = target is None or callable(target) or self.kind == "preset"
        if not (_TARGET.fullmatch(target) if isinstance(target, str) else is_object):
            faults["target"] = f'{target!r}, and neither "package.module:Class" nor a class'
        if (target is None) != bool(self.reason):
            faults["reason"] = f"{self.reason!r}; it stands in the place of a target, and only there"
        if not isinstance(handles, tuple) or not all(isinstance(item, str) and item for item in handles):
            forgotten = f"; write ({handles!r},), with its comma" if isinstance(handles, str) else ""
            faults["handles"] = f"{handles!r}, and not a tuple of patterns{forgotten}"
        elif any(not _PATTERN.fullmatch(item) for item in handles):
            faults["handles"] = f'{handles!r}, and a pattern names at least a package and a class: "package.*.Class"'
        if faults:
            raise PluginError(
                f"{self.distribution} registers {self.kind} {self.name!r} wrongly: "
                f"{'; '.join(f'{key} is {fault}' for key, fault in faults.items())}.",
                "Correct the plugin; sfkit.registry.registry.Entry documents each field.",
            )

    @property
    def form(self) -> str:
        """What users write: the name, with a placeholder where it takes an argument."""
        return f"{self.name}:<{self.placeholder or self.argument}>" if self.argument else self.name

    @property
    def version(self) -> str:
        """The installed version of the distribution; ``"unknown"`` for a component that is registered by hand."""
        try:
            return version(self.distribution)
        except (PackageNotFoundError, ValueError):
            return "unknown"

    def options_of(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a component, with the argument of its name among them.

        Args:
            name: As the user wrote it.
            options: The other options.

        Raises:
            ConfigError: The argument is missing, empty, or given twice with different values.
        """
        if not self.argument:
            return dict(options)
        given = options.get(self.argument)
        argument = split_name(name)[1] or given
        if argument in (None, ""):
            raise ConfigError(
                f"{self.kind.capitalize()} {self.name!r} needs to know which: its name has the form {self.form}.",
                f'Write "{self.form}", or give the option {self.argument}.',
            )
        if given not in (None, argument):
            raise ConfigError(
                f"{name!r} has the option {self.argument}={given!r} beside it: which of the two?",
                f"Leave the option {self.argument} out.",
            )
        return {**options, self.argument: argument}

    def load(self) -> Any:
        """Import the target.

        Raises:
            PluginError: There is none, its own name is another one, or the import failed, with the error chained.
        """
        if self.target is None:
            raise PluginError(f"{self.kind.capitalize()} {self.name!r} cannot be used: {self.reason}.")
        found = self._import() if isinstance(self.target, str) else self.target
        own = getattr(found, "name", None)
        if self.kind not in ("command", "parity") and isinstance(own, str) and own != self.name:
            # It would be saved under its own name, without the license and options of this one.
            raise PluginError(
                f"{self.distribution} registers {self.kind} {self.name!r}, whose class says that its name is {own!r}.",
                f'Set name = "{self.name}" in the class, or register it as {own!r}.',
            )
        return found

    def _import(self) -> Any:
        module, _, attribute = str(self.target).partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # importing a plugin's module runs its code, which may do anything
            raise PluginError(
                f"{self.kind.capitalize()} {self.name!r} of {self.distribution} could not be imported "
                f"from {self.target!r}: {_name_and_message(error)}",
                f"Install what is missing, or reinstall {self.distribution}.",
            ) from error


#: What a plugin may say of a component, beside its name and target.
_METADATA = tuple(item.name for item in fields(Entry) if item.default is not MISSING)


def split_name(text: str) -> tuple[str, str | None]:
    """Split ``"name:argument"`` at the first colon; the argument is None where there is no colon."""
    name, colon, argument = text.partition(":")
    return name, argument if colon else None


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that failed to load; the others are not affected."""

    distribution: str
    entry_point: str
    error: BaseException

    def __str__(self) -> str:
        frame = traceback.extract_tb(self.error.__traceback__)
        where = f" (in {frame[-1].filename}:{frame[-1].lineno})" if frame else ""
        return f"{self.distribution}: {_name_and_message(self.error)}{where}"


def _name_and_message(error: BaseException) -> str:
    """Class and message of an error of a plugin. Even its ``__str__`` may fail."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as another:
        return f"{type(error).__name__}: (its message cannot be read: {type(another).__name__})"


@dataclass
class Registry:
    """Components by kind and name. A plain value: tests build their own, users share :func:`default_registry`."""

    entries: list[Entry] = field(default_factory=list)
    broken: list[BrokenPlugin] = field(default_factory=list)

    def add_plugin(self, module: ModuleType | object, distribution: str) -> None:
        """Add what one plugin registers, or nothing of it where one of its hooks fails.

        Raises:
            PluginError: Wrong ``SFKIT_API``, a misspelled hook, a component that is registered wrongly, or under a name
                of the core, which is added first.
        """
        api = getattr(module, "SFKIT_API", None)
        if api != SFKIT_API:
            raise PluginError(
                f"Plugin {distribution} was written for plugin interface {api}, this sfkit has {SFKIT_API}.",
                f"Upgrade the older of the two; the plugin module must say SFKIT_API = {SFKIT_API}.",
            )
        # One manager for each plugin: an error can then be put down to its author, and touches nobody else.
        manager = pluggy.PluginManager("sfkit")
        manager.add_hookspecs(hookspecs)
        manager.register(module)
        try:
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = ", ".join(_HOOKS.values())
            raise PluginError(
                f"Plugin {distribution} implements an unknown hook: {error}", f"Hooks: {known}."
            ) from error
        collected: list[Entry] = []
        for kind, hook in _HOOKS.items():
            getattr(manager.hook, hook)(register=functools.partial(_collect, collected, kind, distribution))
        reserved = {(entry.kind, entry.name) for entry in self.entries if entry.distribution == CORE}
        for entry in collected:
            if distribution != CORE and (entry.kind, entry.name) in reserved:
                raise PluginError(
                    f"{distribution} registers {entry.kind} {entry.name!r}, a name of the core.",
                    "Uninstall it, or give its component another name.",
                )
        self.entries.extend(collected)

    def add_entry_point(self, entry_point: EntryPoint) -> None:
        """Load one entry point; a failure is recorded in ``broken`` and stops nothing."""
        named = entry_point.dist.name if entry_point.dist else None
        distribution = named or entry_point.value  # an installation that is damaged has no name
        try:
            self.add_plugin(entry_point.load(), distribution)
        except (Exception, SystemExit) as error:  # a plugin that calls sys.exit ends itself alone
            self.broken.append(BrokenPlugin(distribution, entry_point.name, error))

    def of_kind(self, kind: Kind) -> list[Entry]:
        """All components of a kind, by name; without policies that have no adapter."""
        found = (entry for entry in self.entries if entry.kind == kind and entry.target is not None)
        return sorted(found, key=lambda entry: entry.name)

    def unsupported(self) -> list[Entry]:
        """The policies that are known and have no adapter, by name; each says why."""
        return sorted((entry for entry in self.entries if entry.target is None), key=lambda entry: entry.name)

    def get(self, kind: Kind, name: str) -> Entry:
        """Look a name up; the text after its first colon is the argument, see :func:`split_name`.

        Raises:
            UnknownNameError: There is no such name; the error lists installed names, the nearest one, broken plugins.
            PluginError: Two distributions registered the name.
        """
        name, argument = split_name(name) if isinstance(name, str) else (shown(name), None)
        installed = self.of_kind(kind)
        found = [entry for entry in installed if entry.name == name]
        if not found:
            names, known = [entry.name for entry in installed], EXTRAS.get(kind, {})
            meant = REPOSITORIES.get(name, f"hf:{name}" if "/" in name else name) if kind == "teacher" else name
            hint = did_you_mean(name, [*names, *known]) if meant == name else f" Did you mean {meant!r}?"
            # A plugin that failed to load may have had the name: show its error too.
            broken = f" Broken plugins: {'; '.join(map(str, self.broken))}." if self.broken else ""
            first = split_name(meant)[0]
            lacks = first in known and first not in names and f"sfkit-{known[first]}:" not in broken
            raise UnknownNameError(
                f"Unknown {kind} {name!r}.{'' if name in known else hint}{broken}",
                f"{pip_install(known[first]) + '. ' if lacks else ''}"
                f"Installed: {', '.join(entry.form for entry in installed) or 'none'}.",
            ) from (self.broken[0].error if self.broken else None)
        if len(found) > 1:
            owners = " and ".join(entry.distribution for entry in found)
            raise PluginError(
                f"{kind.capitalize()} {name!r} is registered by {owners}.",
                "Uninstall one of them, or name the ones to load in SFKIT_PLUGINS.",
            )
        if argument is not None and not found[0].argument:
            raise UnknownNameError(
                f"{kind.capitalize()} {name!r} takes nothing after a colon, got {argument!r}.", f"Write {name!r}."
            )
        return found[0]

    def adapters_for(self, cls: type) -> list[Entry]:
        """Policy adapters whose patterns match ``cls``, those for its most derived matching base first."""
        return _matching(cls, self.of_kind("policy"))

    def unsupported_for(self, cls: type) -> list[Entry]:
        """Policies without an adapter whose patterns match ``cls``."""
        return _matching(cls, self.unsupported())


def pip_install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "{CORE}[{extra}]"{" (Python 3.12 or newer)" if extra in ("demo", "lerobot", "libero") else ""}'


def _matching(cls: type, entries: list[Entry]) -> list[Entry]:
    names = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    found = [entry for name in names for entry in entries if any(fnmatchcase(name, item) for item in entry.handles)]
    return [entry for index, entry in enumerate(found) if entry not in found[:index]]


def _collect(into: list[Entry], kind: Kind, distribution: str, target: object, *, name: str, **metadata: Any) -> None:
    for key in metadata.keys() - set(_METADATA):
        raise PluginError(
            f"{distribution} registers {kind} {name!r} with an unknown {key}.{did_you_mean(key, _METADATA)}",
            f"Beside name: {', '.join(_METADATA)}.",
        )
    if isinstance(metadata.get("handles"), list):
        metadata["handles"] = tuple(metadata["handles"])
    into.append(Entry(kind, name, target, distribution, **metadata))


def discover(points: Iterable[EntryPoint], only: str | None) -> Registry:
    """Build a registry from entry points.

    Args:
        points: The entry points to load.
        only: Comma list of distributions to load (``""``: none; None: all). The core itself is always loaded.
    """
    registry = Registry()
    wanted = None if only is None else {name.strip() for name in only.split(",")} | {CORE}
    # The core first, because its names are reserved.
    for point in sorted(points, key=lambda point: point.dist is None or point.dist.name != CORE):
        if wanted is None or (point.dist is not None and point.dist.name in wanted):
            registry.add_entry_point(point)
    return registry


@functools.cache
def default_registry() -> Registry:
    """The registry of what is installed, built on first use. ``SFKIT_PLUGINS`` limits it; see :func:`discover`."""
    return discover(entry_points(group="sfkit"), os.environ.get("SFKIT_PLUGINS"))
