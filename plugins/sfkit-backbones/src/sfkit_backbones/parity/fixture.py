"""The fixture file: a small model, its inputs and its outputs, in one safetensors file.

Metadata: ``config``, a JSON object with the ``model`` and its settings; ``cases``, a JSON list of names, or of objects
with a ``name`` and settings of the case. Tensors: ``sd.<checkpoint key>``, ``<case>.in.<name>`` and
``<case>.out.<name>``. Inputs are those of the backbone itself, after any preprocessing.

A file with ``cases`` of objects and without a ``config`` is the record of an alignment loss.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from sfkit.errors import CheckpointError
from sfkit.utils.places import parse_json
from sfkit_backbones.files import SafeTensorFile, open_tensors

#: A parsed JSON object; whoever reads a value from it checks its type.
JsonObject: TypeAlias = Mapping[str, Any]

#: Prefix of the checkpoint's own keys.
STATE = "sd."
#: The model of a file without a config.
_LOSS = "alignment loss"


@dataclass(frozen=True)
class Case:
    """One run: named inputs, the reference's outputs, and settings of this run."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    settings: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Fixture:
    """The contents of a fixture file without the weights: the code that reads checkpoints loads those.

    Attributes:
        config: Settings of the model; ``config["model"]`` names its family.
        cases: Cases by name.
        shapes: Shape of each tensor of the state dict, by checkpoint key.
        path: The file.
    """

    config: JsonObject
    cases: Mapping[str, Case]
    shapes: Mapping[str, tuple[int, ...]]
    path: Path

    @property
    def model(self) -> str:
        """Name of the family of backbones."""
        return str(self.config["model"])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a fixture.

        Raises:
            CheckpointError: The file does not exist, is damaged, or has another form.
        """
        path = Path(path)
        file = open_tensors(path)
        if not isinstance(file, SafeTensorFile):
            raise CheckpointError(f"{path} is no fixture.", "Fixtures are .safetensors files.")
        config, settings = _metadata(file)
        shapes = file.shapes()
        with file.reading():
            cases = {name: _read_case(file, name, shapes, own) for name, own in settings.items()}
        state = {key[len(STATE) :]: shape for key, shape in shapes.items() if key.startswith(STATE)}
        return cls(config, cases, state, path)


def _metadata(file: SafeTensorFile) -> tuple[JsonObject, dict[str, JsonObject]]:
    """The config, and the settings of each case by its name."""
    metadata = file.metadata()
    try:
        listed = parse_json(metadata["cases"])
        if not isinstance(listed, list) or not listed:
            raise TypeError("cases must list at least one name")
        detailed = all(isinstance(case, dict) for case in listed)
        config = {"model": _LOSS} if detailed and "config" not in metadata else parse_json(metadata["config"])
        if not isinstance(config["model"], str):
            raise TypeError("config must name a model")
        settings = {str(case["name"]): case for case in listed} if detailed else {str(case): {} for case in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is no fixture: {type(error).__name__}: {error}.",
            'Its metadata must hold "config" (JSON that names the "model") and "cases" (a JSON list of names).',
        ) from error
    return config, settings


def _read_case(file: SafeTensorFile, name: str, shapes: Mapping[str, tuple[int, ...]], settings: JsonObject) -> Case:
    inputs, outputs = (
        {key[len(start) :]: file.get(key) for key in shapes if key.startswith(start)}
        for start in (f"{name}.in.", f"{name}.out.")
    )
    if not inputs or not outputs:
        raise CheckpointError(
            f"{file.path}: case {name!r} lacks {'outputs' if inputs else 'inputs'}.",
            f"Its tensors are {name}.in.<name> and {name}.out.<name>.",
        )
    return Case(inputs, outputs, settings)


def save_fixture(path: str | Path, config: JsonObject, state: Mapping[str, Tensor], cases: Mapping[str, Case]) -> None:
    """Write a fixture; an interruption leaves no partial file.

    Raises:
        CheckpointError: The file exists, or ``config`` names no model.
    """
    path = Path(path)
    if "model" not in config:
        raise CheckpointError("The config of a fixture must name its model.", 'Add config["model"].')
    if path.exists():
        raise CheckpointError(f"{path} exists.", "Delete it first, or write to another file.")
    tensors = {f"{STATE}{key}": value for key, value in state.items()}
    for name, case in cases.items():
        tensors.update({f"{name}.in.{key}": value for key, value in case.inputs.items()})
        tensors.update({f"{name}.out.{key}": value for key, value in case.outputs.items()})
    listed = [{**case.settings, "name": name} if case.settings else name for name, case in cases.items()]
    metadata = {"config": json.dumps(dict(config)), "cases": json.dumps(listed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        # safetensors refuses tensors that share memory, as views of one output do: clone each.
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, fresh, metadata)
        Path(fresh).chmod(0o644)  # mkstemp makes files that only their owner may read
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
