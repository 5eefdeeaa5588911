"""What teachers, adapters, objectives and projectors have in common: a name and validated options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError

#: What constructors take; inside the classes below ``Options`` names the class's own options.
AnyOptions: TypeAlias = Options | Mapping[str, Any] | None


class Configurable:
    """A named thing with options. Subclasses set ``name`` and, if they have any, ``Options``."""

    name: str
    Options: ClassVar[type[Options]] = Options
    options: Any

    def configure(self, options: AnyOptions) -> None:
        """Validate and keep the options.

        Raises:
            ConfigError: Unknown field, bad value, or the options of another component.
        """
        if isinstance(options, Options) and not isinstance(options, self.Options):
            raise ConfigError(
                f"{type(self).__name__} was given {type(options).__qualname__}.",
                f"Pass {self.Options.__qualname__}, or a mapping.",
            )
        self.options = options if isinstance(options, Options) else self.Options.parse(self.name, options or {})

    @property
    def spec(self) -> ComponentSpec:
        """Name and the options that differ from their defaults, as JSON values."""
        return ComponentSpec(name=self.name, options=self.options.model_dump(mode="json", exclude_defaults=True))
