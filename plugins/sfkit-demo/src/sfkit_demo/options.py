"""Reading what the command line was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfkit.errors import ConfigError, UnknownNameError, did_you_mean
from sfkit_demo import RECORDING
from sfkit_demo.settings import POLICIES


def find_data(given: Path | None) -> Path:
    """The dataset that was named, or else the shipped recording.

    Raises:
        ConfigError: There is none where it was named.
    """
    if given is not None and not given.is_dir():
        raise ConfigError(f"There is no dataset at {given}.")
    return given or RECORDING


def parse_policy(name: str) -> str:
    """The name of one of the demonstration's policies.

    Raises:
        UnknownNameError: It is none of them.
    """
    if name not in POLICIES:
        raise UnknownNameError(
            f"The demo has no policy {name!r}.{did_you_mean(name, POLICIES)}", f"Policies: {', '.join(POLICIES)}."
        )
    return name


def parse_teacher(name: str, options: str) -> tuple[str, dict[str, Any]]:
    """A teacher with its options from one word of the command line (see :func:`sfkit.cli.console.parse_options`).

    Raises:
        ConfigError: An unknown teacher or option, a bad value, or text that is not ``k=v``.
    """
    from sfkit.cli.console import parse_options
    from sfkit.registry.registry import default_registry

    model = default_registry().get("teacher", name).load().Options
    return name, model.parse(name, parse_options(options)).model_dump(mode="json", exclude_defaults=True)


def parse_weight(weight: float | None, preset: str | None, default: float = 0.5) -> float:
    """The weight of the alignment loss: the one that was given, the preset's, or else ``default``.

    Raises:
        ConfigError: An unknown preset, or one that does not align tokens at one student layer, where the demo measures.
    """
    from sfkit.factory.resolve import find_preset

    found = find_preset(preset)
    if found is not None and (
        found.by_blocks or "pairs" in found.arguments or isinstance(found.arguments.get("student_layer"), str)
    ):
        raise ConfigError(
            f"The demo measures the tokens of one student layer, and preset {found.name!r} aligns something else.",
            "Use it in SpatialForcing.wrap or lerobot-train.",
        )
    if weight is not None:
        return weight
    return float(default if found is None else found.arguments.get("weight", default))
