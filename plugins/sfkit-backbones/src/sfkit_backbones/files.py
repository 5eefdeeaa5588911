"""Checkpoint files, read one tensor at a time: safetensors, and PyTorch files with ``weights_only=True``."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.torch_version import TorchVersion
from typing_extensions import Self

from sfkit.errors import CheckpointError

#: The first release of torch in which ``weights_only=True`` runs no code of the file (CVE-2025-32434).
_SAFE = "2.6"
_DAMAGED = "It may be truncated or damaged: fetch it again, or point to another file."


class TensorFile(ABC):
    """A checkpoint file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by key; reads no values."""

    @abstractmethod
    def get(self, key: str) -> Tensor:
        """One tensor, on the CPU. Call this inside :meth:`reading` only."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[TensorFile]:
        """Context manager that opens the file for :meth:`get`, and unmaps the file at its end."""


class SafeTensorFile(TensorFile):
    """A safetensors file, read lazily."""

    _handle: Any = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        with self.reading() as file:
            return {key: tuple(file._handle.get_slice(key).get_shape()) for key in file._handle.keys()}  # noqa: SIM118

    def metadata(self) -> dict[str, str]:
        """The string metadata of the file's header."""
        with self.reading() as file:
            return dict(file._handle.metadata() or {})

    def get(self, key: str) -> Tensor:
        try:
            return self._handle.get_tensor(key)  # type: ignore[no-any-return]
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: {key!r} could not be read: {error}", _DAMAGED) from error

    @contextmanager
    def reading(self) -> Iterator[Self]:
        try:
            handle = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} could not be read: {error}", _DAMAGED) from error
        with handle:
            self._handle = handle
            try:
                yield self
            finally:
                self._handle = None


class TorchFile(TensorFile):
    """A PyTorch file with a flat state dict; memory-mapped where its format allows."""

    _state: Mapping[str, Tensor] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self._load().items()}

    def get(self, key: str) -> Tensor:
        return self._load()[key]

    @contextmanager
    def reading(self) -> Iterator[Self]:
        try:
            yield self
        finally:
            self._state = None

    def _load(self) -> Mapping[str, Tensor]:
        if self._state is None:
            self._state = _flat(_torch_load(self.path), self.path)
        return self._state


def open_tensors(path: Path) -> SafeTensorFile | TorchFile:
    """The reader for a file's suffix; reads nothing yet.

    Raises:
        CheckpointError: The file does not exist, or its suffix is not supported.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.", "Check the path of the weights.")
    if path.suffix == ".safetensors":
        return SafeTensorFile(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return TorchFile(path)
    raise CheckpointError(f"{path} is of an unknown kind.", "Give a .safetensors, .pt or .pth file.")


def _torch_load(path: Path) -> object:
    if TorchVersion(torch.__version__) < _SAFE:
        raise CheckpointError(
            f"{path} is a pickle, and in torch {torch.__version__} one can run code even under weights_only=True "
            "(CVE-2025-32434): refused.",
            f"Upgrade to torch {_SAFE} or later, or take the safetensors file of the same model.",
        )
    try:
        try:
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)  # no Path in torch 2.2
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # a format from before PyTorch 1.6
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects beside tensors, which could run any code when unpickled"
            f"{' (an argparse namespace of settings)' if 'argparse' in str(error) else ''}: refused.",
            "Use the safetensors file of the same model from the Hugging Face Hub, or save its bare state dict once, "
            "where you trust the file: "
            'safetensors.torch.save_file(torch.load(path, weights_only=False)["model"], "model.safetensors").',
        ) from error
    except Exception as error:  # of a damaged pickle, torch's reader raises whatever its opcodes lead to
        raise CheckpointError(f"{path} could not be read: {type(error).__name__}: {error}", _DAMAGED) from error


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _flat(loaded: object, path: Path) -> Mapping[str, Tensor]:
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and _is_plain(state[key]) for key in state):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__} that is no state dict (names to tensors; none sparse, "
            "quantized or without values).",
            "Save model.state_dict(), best as safetensors.",
        )
    return state
