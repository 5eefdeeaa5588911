"""What ``lerobot-train`` was told and does not pass on to the policy: read from its command line, as LeRobot does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

logger = logging.getLogger("sfkit")

_READ = ("dataset", "log_freq", "resume", "rename_map")


@dataclass(frozen=True)
class Trainer:
    """Settings of the run.

    Attributes:
        log_freq: The trainer logs at every this many steps. 1 where the policy is built by other means.
        resume: Whether a run is resumed; None where that is not known.
        rename_map: Batch keys of the dataset, by the names that the policy has for them.
        depth_output_unit: Unit in which the dataset returns depth maps.
        image_transforms: What the dataset applies to pictures.
    """

    log_freq: int = 1
    resume: bool | None = None
    rename_map: Mapping[str, str] = field(default_factory=dict)
    depth_output_unit: str = "mm"
    image_transforms: Any = None


def read_trainer(arguments: Sequence[str] | None = None) -> Trainer:
    """The settings of the running ``lerobot-train``; defaults where something else runs.

    Args:
        arguments: The command line without the program; that of this process by default.
    """
    return _read_trainer(tuple(sys.argv[1:] if arguments is None else arguments))


@functools.lru_cache(maxsize=1)
def _read_trainer(arguments: tuple[str, ...]) -> Trainer:
    from lerobot.configs import parser

    path = parser.parse_arg("config_path", arguments)
    if parser.parse_arg("dataset.repo_id", arguments) is None and path is None:
        return Trainer()
    config = _parse(_of_interest(arguments), path)
    if config is None:
        return Trainer(resume=_is_true(parser.parse_arg("resume", arguments)))
    transforms = None
    if config.dataset.image_transforms.enable:
        from lerobot.transforms import ImageTransforms

        transforms = ImageTransforms(config.dataset.image_transforms)
    return Trainer(
        log_freq=max(1, config.log_freq),
        resume=config.resume,
        rename_map=dict(config.rename_map),
        depth_output_unit=config.dataset.depth_output_unit,
        image_transforms=transforms,
    )


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() in ("true", "1", "yes")


def _of_interest(arguments: Sequence[str]) -> list[str]:
    """The arguments that set one of the fields read here, each with its value."""
    kept: list[str] = []
    keeping = False
    for argument in arguments:
        if argument.startswith("--"):
            keeping = argument[2:].partition("=")[0].partition(".")[0] in _READ
        if keeping:
            kept.append(argument)
    return kept


def _parse(arguments: list[str], path: str | None) -> Any:
    """Those fields of the training configuration; None where they cannot be read here (a Hub repository)."""
    import draccus
    from lerobot.configs.train import TRAIN_CONFIG_NAME, TrainPipelineConfig

    # Of the whole configuration draccus would register every option of every policy, robot and environment.
    types = get_type_hints(TrainPipelineConfig)
    fields = [
        (f.name, types[f.name], _without_owner(f)) for f in dataclasses.fields(TrainPipelineConfig) if f.name in _READ
    ]
    part = dataclasses.make_dataclass("TrainerSettings", fields)
    with _quiet() as said, tempfile.TemporaryDirectory() as folder:
        try:
            copy = None
            if path is not None:
                source = Path(path) / TRAIN_CONFIG_NAME if Path(path).is_dir() else Path(path)
                copy = Path(folder) / "config.json"
                copy.write_text(json.dumps({key: value for key, value in _read(source).items() if key in _READ}))
            with draccus.config_type("json"):
                return draccus.parse(part, config_path=copy, args=arguments)
        except (Exception, SystemExit) as error:
            problem = f"{error} {said.getvalue()}"
    logger.debug("sfkit: the settings of the trainer could not be read: %s", problem)
    return None


def _without_owner(field: dataclasses.Field[Any]) -> Any:
    """A field as another dataclass may have it."""
    return dataclasses.field(default=field.default, default_factory=field.default_factory)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """What LeRobot says while it reads its settings, it has said before."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            yield said
    finally:
        logging.disable(before)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".json":
        return dict(json.loads(path.read_text()))
    import yaml  # type: ignore[import-untyped]

    return dict(yaml.safe_load(path.read_text()))
