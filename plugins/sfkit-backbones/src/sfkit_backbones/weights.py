"""Load a checkpoint into a network: strict keys, only the needed tensors, one tensor in host memory at a time."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sfkit.errors import CheckpointError
from sfkit_backbones.files import TensorFile, open_tensors

#: After so many bytes the file is unmapped and mapped again: this bounds resident host memory.
_SHARE = 64 * 2**20


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which new modules have no memory and no initialization; :func:`load_weights` fills them."""
    with torch.device("meta"):
        yield


def load_weights(
    network: nn.Module,
    path: Path,
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> None:
    """Fill ``network``, built under :func:`without_weights`, from a checkpoint.

    Each tensor is read by itself, cast to the dtype of its parameter, and placed on ``device``. Host memory never holds
    more than the network and a small share of the file.

    Args:
        network: Its parameters and persistent buffers define keys, shapes and dtypes.
        path: A ``.safetensors`` file, or a PyTorch file that loads with ``weights_only=True``.
        prefix: Prefix of the network's keys in the file.
        ignored: Patterns (``fnmatch``) of keys in the file that the network does not need.
        device: Device of the tensors; the CPU by default.
        advance: Called with the number of bytes of each tensor, for a progress bar.

    Raises:
        CheckpointError: Keys are missing or unexpected, shapes differ (the message names each), or the file is damaged.
    """
    wanted = {prefix + name: tensor for name, tensor in network.state_dict(keep_vars=True).items()}
    shapes = open_tensors(path).shapes()
    _check_keys({key: tuple(tensor.shape) for key, tensor in wanted.items()}, shapes, ignored, path)
    device = device or torch.device("cpu")
    for keys in _shares(wanted):
        with open_tensors(path).reading() as file:
            for key in keys:
                _assign(network, key[len(prefix) :], _read(file, key), device)
                advance(wanted[key].numel() * wanted[key].element_size())


def _shares(wanted: dict[str, Tensor]) -> Iterator[list[str]]:
    share: list[str] = []
    size = 0
    for key, tensor in wanted.items():
        share.append(key)
        size += tensor.numel() * tensor.element_size()
        if size >= _SHARE:
            yield share
            share, size = [], 0
    if share:
        yield share


def _read(file: TensorFile, key: str) -> Tensor:
    tensor = file.get(key)
    small = tensor.is_floating_point() and tensor.element_size() == 1  # of which torch cannot say what is finite
    if not bool((tensor.float() if small else tensor).isfinite().all()):
        raise CheckpointError(
            f"{file.path}: {key!r} holds NaN or infinite values.", "The file is damaged: fetch it again."
        )
    return tensor


def _assign(network: nn.Module, name: str, value: Tensor, device: torch.device) -> None:
    """Replace the parameter or buffer ``name`` by ``value``, of its own shape ``(...,)``, in the dtype it has."""
    parent, _, leaf = name.rpartition(".")
    module = network.get_submodule(parent)
    old = getattr(module, leaf)
    # A copy even where nothing changes, lest the parameter keep the whole file mapped.
    placed = value.to(device=device, dtype=old.dtype, copy=True)
    if isinstance(old, nn.Parameter):
        module.register_parameter(leaf, nn.Parameter(placed, requires_grad=False))
    else:
        module.register_buffer(leaf, placed)


def _check_keys(
    wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], ignored: Sequence[str], path: Path
) -> None:
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(
        key for key in found.keys() - wanted.keys() if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)
    )
    misshapen = [
        f"{key} is {found[key]}, expected {shape}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    faults = [
        f"{title} ({len(keys)}): {_some(keys)}."
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit the network. " + " ".join(faults),
            "Is it the right file, and the right configuration of the teacher? Nothing was loaded.",
        )


def _some(items: Sequence[str], most: int = 12) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
