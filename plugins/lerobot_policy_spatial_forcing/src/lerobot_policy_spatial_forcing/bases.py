"""LeRobot's policy types, each with an aligned counterpart ``sf_*``. A policy is imported when it is asked for."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from sfkit import GenericAdapter
from sfkit.errors import AdapterError, ConfigError
from sfkit.policies.base import PolicyAdapter
from sfkit.registry.registry import Entry, default_registry

PREFIX = "sf_"


@dataclass(frozen=True)
class Base:
    """A policy type, of LeRobot or of a package that is installed beside it.

    Attributes:
        name: The type, as it is registered with LeRobot.
        config_class: Its configuration class, by which LeRobot finds the policy and the processors.
    """

    name: str
    config_class: Any

    @property
    def sf_type(self) -> str:
        """The type of its aligned counterpart on the command line."""
        return f"{PREFIX}{self.name}"

    @property
    def stem(self) -> str:
        """What the class names begin with."""
        return str(self.config_class.__name__).removesuffix("Config")

    @property
    def policy_class(self) -> Any:
        """The policy class.

        Raises:
            ImportError: What it needs is not installed; the error says how to install it.
        """
        from lerobot.policies.factory import get_policy_class

        try:
            return get_policy_class(self.name)
        except ImportError as error:
            raise ImportError(
                f"{self.sf_type} needs {self.name}, which cannot be imported: {error}. {self._cure}"
            ) from error

    @property
    def make_processors(self) -> Any:
        """The function that makes the policy's processors."""
        module = importlib.import_module(self.config_class.__module__.replace("configuration_", "processor_"))
        return getattr(module, f"make_{self.name}_pre_post_processors")

    def adapter(self) -> type[PolicyAdapter]:
        """The class of the adapter that is registered for the policy.

        Raises:
            AdapterError: There is none; the error says why, and what to give instead.
        """
        kind, registry = self.policy_class, default_registry()
        for entry in registry.adapters_for(kind):
            return _loaded(entry)
        refused = next(iter(registry.unsupported_for(kind)), None)
        why = f": {refused.reason}" if refused else ""
        broken = "".join(f" Broken plugin: {plugin}." for plugin in registry.broken)
        raise AdapterError(
            f"--policy.type={self.sf_type} has no adapter{why}.{broken}",
            'Describe the policy with --policy.sf.adapter=\'{"name": "generic", ...}\' (`sfkit inspect` finds the '
            "options), or register a PolicyAdapter that handles "
            f"{kind.__module__}.{kind.__qualname__}.",
        )

    @property
    def _cure(self) -> str:
        top = self.config_class.__module__.partition(".")[0]
        if top != "lerobot":
            return f"Install what {top} needs."
        extra = _extra_of(self.name)
        return f"Install it with: pip install 'lerobot[{extra}]'." if extra else "Reinstall lerobot."


def adapter_named(name: str) -> type[PolicyAdapter]:
    """The class of a registered adapter.

    Raises:
        UnknownNameError: No adapter has this name; the error lists those that there are.
    """
    return _loaded(default_registry().get("policy", name))


def is_generic(adapter: object) -> bool:
    """Whether it is sfkit's generic adapter, given as ``wrap`` takes it."""
    return isinstance(adapter, GenericAdapter) or (isinstance(adapter, tuple) and adapter[0] == GenericAdapter.name)


def _loaded(entry: Entry) -> type[PolicyAdapter]:
    found = entry.load()
    if not (isinstance(found, type) and issubclass(found, PolicyAdapter)):
        raise ConfigError(f"{entry.distribution} registers {entry.name!r}, which is no class of PolicyAdapter.")
    return found


def _extra_of(name: str) -> str:
    """LeRobot's extra for one of its policies: the longest whose name the type begins with (``pi`` of ``pi0_fast``)."""
    plain = _letters(name)
    try:
        extras = metadata("lerobot").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return ""
    return max((extra for extra in extras if plain.startswith(_letters(extra))), key=len, default="")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
