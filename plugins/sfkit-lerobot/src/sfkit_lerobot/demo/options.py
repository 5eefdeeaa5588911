"""Reading what the command line was given."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfkit.errors import ConfigError, PluginError

_EXTRAS = ("datasets", "lerobot", "matplotlib", "transformers")


def require_extras() -> None:
    """Check that what the demo needs beside the adapters is installed.

    Raises:
        PluginError: Something is missing.
    """
    missing = [name for name in _EXTRAS if find_spec(name) is None]
    if missing:
        raise PluginError(f"The demo needs {', '.join(missing)}.", "pip install sfkit-lerobot[demo]")


def find_data(given: Path | None, places: Sequence[Path]) -> Path:
    """The dataset that was named, or else the first of ``places`` that exists.

    Raises:
        ConfigError: There is none.
    """
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"There is no dataset at {given}.")
        return given
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        "The shipped recording was not found.",
        "Run the demo in a checkout of the repository, or name a dataset with --data.",
    )


def parse_teacher(name: str, options: str) -> tuple[str, dict[str, Any]]:
    """A teacher with the options of ``"k=v,k=v"``, converted to their types by the teacher's own options model.

    Raises:
        ConfigError: An unknown teacher or option, a bad value, or text that is not ``k=v``.
    """
    from sfkit.registry import default_registry

    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in options.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"Cannot read the teacher option {part!r}.", "Write key=value, separated by commas.")
        values[key.strip()] = value.strip()
    model = default_registry().get("teacher", name).load().Options
    return name, model.parse(name, values).model_dump(mode="json", exclude_defaults=True)
