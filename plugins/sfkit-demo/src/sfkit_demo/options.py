"""Parse the options of the command line."""

from __future__ import annotations

from pathlib import Path

from sfkit.errors import ConfigError, UnknownNameError, did_you_mean
from sfkit_demo import RECORDING
from sfkit_demo.settings import POLICIES


def find_data(given: Path | None) -> Path:
    """The given dataset, or the recording in this package.

    Raises:
        ConfigError: The given dataset does not exist.
    """
    if given is not None and not given.is_dir():
        raise ConfigError(f"There is no dataset at {given}.")
    return given or RECORDING


def parse_policy(name: str) -> str:
    """Check the name of a policy.

    Raises:
        UnknownNameError: The demo has no such policy.
    """
    if name not in POLICIES:
        raise UnknownNameError(
            f"The demo has no policy {name!r}.{did_you_mean(name, POLICIES)}", f"Policies: {', '.join(POLICIES)}."
        )
    return name


def parse_teacher(name: str, options: str) -> tuple[str, dict[str, object]]:
    """A teacher with its options (see :func:`sfkit.cli.console.parse_options`).

    Raises:
        ConfigError: The teacher or an option is unknown, a value is invalid, or the text is not ``k=v,k=v``.
    """
    from sfkit.cli.console import parse_options
    from sfkit.registry.registry import default_registry

    model = default_registry().get("teacher", name).load().Options
    return name, model.parse(name, parse_options(options)).model_dump(mode="json", exclude_defaults=True)


def parse_weight(weight: float | None, preset: str | None, default: float = 0.5) -> float:
    """The weight of the alignment loss: the given one, the preset's, or ``default``.

    Raises:
        ConfigError: The preset is unknown, or does not align one student layer, as the demo's probes need.
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
