"""Components: a name, validated options, and who may set each option.

A file (a checkpoint's configuration, a training configuration) may set numbers and fixed words. Any other option needs
a mark; without one it is set in the call alone. An option that its author forgot to mark is thus safe.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError

T = TypeVar("T")


class SetBy(IntEnum):
    """Who may set an option, the least trusted first."""

    ANY_FILE = 0
    LOCAL_FILE = 1
    CALL = 2


@dataclass(frozen=True)
class Mark:
    """The mark that :data:`Harmless` and :data:`Reaching` add to an annotation."""

    by: SetBy


#: ``Harmless[bool]``: any file may set the option. It permits no code and names nothing outside the file.
Harmless = Annotated[T, Mark(SetBy.ANY_FILE)]

#: ``Reaching[str]``: the option names a file, a folder, a repository or its revision. A local file may set it, which is
#: logged; a file of the Hub may not.
Reaching = Annotated[T, Mark(SetBy.LOCAL_FILE)]

_CHANGEABLE = "changeable"
#: ``Changeable[int]``: a resumed run may have another value, because the option changes how something is computed, or
#: describes the data, and not what is learned. It goes around other marks: ``Changeable[Harmless[bool]]``.
Changeable = Annotated[T, _CHANGEABLE]

_NUMBERS = (int, float, types.NoneType)
_COLLECTIONS = (tuple, list, dict, set, frozenset, Sequence, Mapping, Iterable)


def is_data(annotation: Any) -> bool:
    """Whether an annotation admits numbers, fixed words and parts that are marked harmless, and nothing else."""
    if annotation in _NUMBERS or annotation is Ellipsis:
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Mark(SetBy.ANY_FILE) in inner[1:] or is_data(inner[0])
    if origin is Literal:
        return True
    return origin in (Union, types.UnionType, *_COLLECTIONS) and bool(inner) and all(map(is_data, inner))


def set_by(field: FieldInfo) -> SetBy:
    """Who may set an option that holds no component."""
    unmarked = SetBy.ANY_FILE if is_data(field.annotation) else SetBy.CALL
    return max((item.by for item in field.metadata if isinstance(item, Mark)), default=unmarked)


def is_changeable(field: FieldInfo) -> bool:
    """Whether an option has the mark :data:`Changeable`."""
    return _CHANGEABLE in field.metadata


#: The options that constructors take. Inside a component's class, ``Options`` names its own options.
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
        self.options = (
            options
            if isinstance(options, Options)
            else self.Options.parse(self.name, {} if options is None else options)
        )

    @property
    def spec(self) -> ComponentSpec:
        """Name and all options as JSON values, so that it is the same where another version has other defaults."""
        return ComponentSpec(name=self.name, options=self.options.model_dump(mode="json"))

    @property
    def changed_options(self) -> dict[str, Any]:
        """The options of :attr:`spec` that are not at their defaults."""
        changed = self.options.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in self.spec.options.items() if key in changed}
