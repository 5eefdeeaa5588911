"""The fixture file: a small model, its inputs and its outputs, in one safetensors file.

Metadata: ``config``, JSON of an object that names the ``model`` and its settings; ``cases``, JSON of a list of names,
or of objects that hold a ``name`` and settings of the case. Tensors: ``sd.<checkpoint key>``, ``<case>.in.<name>`` and
``<case>.out.<name>``. Inputs are what the backbone itself takes, so that no preprocessing is involved.

A file of the second form that has no ``config`` is the record of an alignment loss.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from sfkit.errors import CheckpointError
from sfkit_backbones.files import SafeTensorFile, open_tensors

#: Before the checkpoint's own keys.
STATE = "sd."
#: The model of a file that has no config, and settings for each case.
_LOSS = "alignment loss"


@dataclass(frozen=True)
class Case:
    """One run: named inputs, the outputs that the reference gave, and settings of this run alone."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fixture:
    """What a fixture file holds, but for the weights: those are read by the same code that reads a checkpoint.

    Attributes:
        config: Settings of the model; ``config["model"]`` names its family.
        cases: By name.
        shapes: Shape of each tensor of the state dict, by checkpoint key.
        path: The file.
    """

    config: Mapping[str, Any]
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
            CheckpointError: No such file, damaged, or not of this form.
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


def _metadata(file: SafeTensorFile) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The config, and the settings of each case by its name."""
    metadata = file.metadata()
    try:
        listed = json.loads(metadata["cases"])
        if not isinstance(listed, list) or not listed:
            raise TypeError("cases must list at least one name")
        detailed = all(isinstance(case, dict) for case in listed)
        config = {"model": _LOSS} if detailed and "config" not in metadata else json.loads(metadata["config"])
        if not isinstance(config["model"], str):
            raise TypeError("config must name a model")
        settings = {str(case["name"]): case for case in listed} if detailed else {str(case): {} for case in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is no fixture: {type(error).__name__}: {error}.",
            'Its metadata must hold "config" (JSON that names the "model") and "cases" (a JSON list of names).',
        ) from error
    return config, settings


def _read_case(
    file: SafeTensorFile, name: str, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]
) -> Case:
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


def save_fixture(
    path: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor], cases: Mapping[str, Case]
) -> None:
    """Write a fixture; an interruption leaves nothing behind. Needs nothing of the model but its ``state_dict``.

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
        # Cloned: safetensors refuses tensors that share memory, as views of one output do.
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, fresh, metadata)
        Path(fresh).chmod(0o644)  # temporary files are private
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
