"""What of the ``sf`` block came from a file, and what of that the file may say.

LeRobot reads the block from the command line, and from ``--config_path`` or ``--policy.path``, by one decoder, which
makes a :class:`ReadText` of each text. What the command line holds is the caller's own.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import draccus

from sfkit.errors import ConfigError, TrustError
from sfkit.factory.resolve import find_preset, read_pairs
from sfkit.saving.trust import Origin, admit, names_in

logger = logging.getLogger("sfkit")


class ReadText(str):
    """A text that draccus has read. It stays one in copies of the block; what Python code sets is none."""

    __slots__ = ()


def _decode(raw: object, path: tuple[str, ...] = ()) -> ReadText:
    return ReadText(raw)


draccus.decode.register(ReadText, _decode)


def is_from_file(name: str, value: object) -> bool:
    """Whether a file, and not the command line or a program, has set a field of the block."""
    return isinstance(value, ReadText) and f"sf.{name}" not in _given_on_the_command_line()


def origin() -> Origin:
    """The file that the block was read from; what is not known to be local is taken to be of the Hub."""
    from lerobot.configs import parser

    named = [where for where in (parser.parse_arg("config_path"), parser.get_path_arg("policy")) if where]
    local = bool(named) and all(Path(where).expanduser().exists() for where in named)
    return Origin(" with ".join(named) or "The file that the configuration was read from", local, _ask)


def admitted(
    arguments: Mapping[str, object], from_file: frozenset[str], options: object, options_from_file: bool
) -> dict[str, Any]:
    """The arguments of ``wrap``, once the file among their sources has been checked.

    Args:
        arguments: All of them.
        from_file: The names of those that a file has set.
        options: The block's ``options``: of components, by name.
        options_from_file: Whether these stood in the file. Then they belong to what the file names, and count as its.

    Raises:
        TrustError: The file asks for what the caller must give.
        ConfigError: ``options`` cannot be read, or names no component.
    """
    if not isinstance(options, Mapping) or not all(isinstance(item, Mapping) for item in options.values()):
        raise ConfigError(
            f"--policy.sf.options is {options!r}.", 'Write JSON: \'{"vggt": {"weights": "/data/vggt.safetensors"}}\'.'
        )
    arguments = {key: _pairs(value) if key == "pairs" else value for key, value in arguments.items()}
    read = {key: value for key, value in arguments.items() if key in from_file}
    own = {key: value for key, value in arguments.items() if key not in from_file}
    named = _of_preset(arguments, options)
    read, own = ({**named, **read}, own) if options_from_file else (read, {**named, **own})
    if options_from_file:
        read, options = admit(read, None, _of(options, names_in(read))), {}
    here, there = names_in(own), names_in(read)
    stray = [name for name in options if name not in (*here, *there)]
    if stray:
        raise ConfigError(
            f"--policy.sf.options names {stray[0]!r}, which is no component of this run.",
            f"Components: {', '.join(map(repr, (*here, *there))) or 'none'}.",
        )
    return {**admit(own, None, _of(options, here)), **admit(read, origin(), _of(options, there))}


def check_cameras(cameras: str | None) -> None:
    """See that the calibration file is the caller's, or named by a local file.

    Raises:
        TrustError: A repository of the Hub names it.
    """
    if cameras is None or not is_from_file("cameras", cameras):
        return
    source = origin()
    if not source.local:
        flag = shlex.quote(f"--policy.sf.cameras={cameras}")
        raise TrustError(f"{source.file} names the calibration file {cameras!r}.", f"If you trust it, give {flag}.")
    logger.warning("sfkit: %s names cameras=%r", source.file, str(cameras))


def _of(options: Mapping[str, object], names: list[str]) -> dict[str, Any]:
    return {name: item for name, item in options.items() if name in names}


def _of_preset(arguments: Mapping[str, object], options: Mapping[str, object]) -> dict[str, Any]:
    """Components of the preset that are named in ``options``, and stand nowhere else."""
    preset = find_preset(cast("str | None", arguments.get("preset")))
    given = {*arguments, "adapter", "pairs", *(["teacher"] if "pairs" in arguments else [])}
    components = {} if preset is None else {key: item for key, item in preset.arguments.items() if key not in given}
    return {key: item for key, item in components.items() if _of(options, names_in({key: item}))}


def _ask(name: str, options: Mapping[str, object]) -> str:
    return "give " + shlex.quote(f"--policy.sf.options={json.dumps({name: dict(options)}, default=str)}")


def _pairs(value: object) -> list[dict[str, Any]]:
    return [{name: item for name, item in pair.items() if item is not None} for pair in read_pairs({"pairs": value})]


def _given_on_the_command_line() -> set[str]:
    from lerobot.configs import parser

    overrides = parser.get_cli_overrides("policy") or []
    return {item[2:].partition("=")[0] for item in overrides if item.startswith("--")}
