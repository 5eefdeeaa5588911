"""Export checkpoints of wrapped openpi policies for use without sfkit.

openpi saves ``policy.state_dict()``, which includes sfkit's projector. Its own loaders are strict, so a server without
sfkit needs a copy without the projector.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from sfkit.errors import CheckpointError
from sfkit.training.attach import HANDLE, without_handle

_WEIGHTS = "model.safetensors"
#: The optimizer's moments include the projector's, and only resuming needs them.
_OF_TRAINING = ("optimizer.pt",)


def export_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy an openpi checkpoint without sfkit's tensors; the copy has the format of a run without sfkit.

    Args:
        source: A checkpoint folder of ``train_pytorch.py``, with ``model.safetensors``.
        target: The folder to write; must not exist. It gets no ``optimizer.pt``, which only resuming needs.

    Raises:
        CheckpointError: ``source`` is no such folder, holds no tensors of sfkit, or ``target`` exists.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source, target = Path(source), Path(target)
    if not (source / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{source} holds no {_WEIGHTS}.", "Give the folder of one step, such as checkpoints/…/20000."
        )
    if target.exists():
        raise CheckpointError(f"{target} exists already.", "Choose another folder, or remove it.")
    with safe_open(source / _WEIGHTS, "pt") as file:
        metadata, ours = file.metadata(), [key for key in file.keys() if key.startswith(f"{HANDLE}.")]  # noqa: SIM118
    if not ours:
        raise CheckpointError(f"{source} holds nothing of sfkit.", "It can be used as it is.")
    plain = without_handle(load_file(source / _WEIGHTS))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(_WEIGHTS, *_OF_TRAINING))
    save_file(plain, target / _WEIGHTS, metadata=metadata)


def openpi_export(
    source: Annotated[str, typer.Argument(help="Checkpoint folder of one step.")],
    target: Annotated[str, typer.Argument(help="Folder to write; must not exist.")],
) -> None:
    """Copy an openpi checkpoint without what sfkit added, to serve it without sfkit."""
    export_checkpoint(source, target)
    typer.echo(f"wrote {target}")
